// Items as grids: answers, those with all that was asked for first, or items to start from.

import { card } from "./card.js";
import { byId, capital, h, words } from "./dom.js";
import { dividers } from "./edits.js";

const place = byId("answers");
let shownItems = new Set(); // ids: a catalogue that changes may give one on two pages

export function clear() {
  shownItems = new Set();
  place.replaceChildren();
}

// Adds a page of answers; the first of its cards.
export function add(answers, state, cards, go) {
  const asked = Object.keys(state.edits);
  const has = (answer) => asked.every((name) => answer.matches[name]?.good);
  const groups = asked.length ? dividers(state.edits).map(group) : [group("")];
  return grow(answers, (answer) => {
    const made = card(answer, cards, state.filters, go, details(answer, asked));
    groups[has(answer) ? 0 : groups.length - 1].append(made);
    return made;
  });
}

export function addItems(items, state, cards, go) {
  const list = group("");
  return grow(items, (item) => {
    const made = card(item, cards, state.filters, go);
    made.querySelector("img").alt ||= describe(item);
    list.append(made);
    return made;
  });
}

function grow(items, make) {
  const fresh = items.filter((item) => !shownItems.has(item.item_id));
  for (const item of fresh) shownItems.add(item.item_id);
  const made = new Set(fresh.map(make));
  // One without cards says nothing but that there are none.
  for (const section of place.children) section.hidden = !section.querySelector(".card");
  return [...place.querySelectorAll(".card")].find((each) => made.has(each));
}

// The list under a divider, made where it is not there yet.
function group(divider) {
  const text = capital(divider);
  let section = [...place.children].find((each) => each.dataset.divider === text);
  if (!section) {
    section = h("section", { class: "group", "data-divider": text }, text ? h("h3", {}, text) : null, h("ol", { class: "answers" }));
    place.append(section);
  }
  return section.querySelector("ol");
}

// What an answer lacks of what was asked for, what it has by a guess only, and how else it differs.
function details({ matches }, asked) {
  const all = Object.entries(matches);
  const wanted = all.filter(([name, match]) => asked.includes(name) && (!match.good || match.predicted));
  const others = all.filter(([name, match]) => !asked.includes(name) && !match.good);
  const told = [...wanted, ...others].map(([name, match]) => [detail(name, match), { guess: match.predicted }]);
  return told.length ? told : [["Alike in all else", {}]];
}

// "suit", "white shoes", "no glasses"; as short as it can be understood.
function detail(name, { value, predicted }) {
  if (value === null || value === "none") return `no ${words(name)}`;
  const [, coloured] = name.match(/^(.*?)_?colou?r$/) ?? [];
  const of = coloured === undefined ? words(name) : words(coloured);
  if (predicted) return `${of} looks ${words(value)}`.trim();
  return (coloured === undefined ? `${of} ${words(value)}` : `${words(value)} ${of}`).trim();
}

function describe(item) {
  const text = (value) => [value].flat().map(words).join(" and ");
  return Object.entries(item.labels).map(([name, value]) => `${words(name)} ${text(value ?? item.seen[name])}`).join(", ");
}
