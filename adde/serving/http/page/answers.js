// Items as a grid: answers with what matches marked, or items to start from.

import { byId, h, shown, told, words } from "./dom.js";
import { fill } from "./images.js";
import { empty, toQuery } from "./state.js";

const SHOWN_TAGS = 4;
const grid = byId("answers");

export function showAnswers(answers, state, go) {
  grid.replaceChildren(...answers.map((answer, at) => answerCard(answer, at + 1, state, go)));
}

export function showItems(items, go) {
  grid.replaceChildren(...items.map((item) => card(item, empty(), go, describe(item), h("p", { class: "id" }, item.item_id))));
}

function answerCard(answer, rank, state, go) {
  const matches = Object.entries(answer.matches);
  const good = matches.filter(([, match]) => match.good).length;
  const head = h(
    "p",
    { class: "score" },
    h("span", { class: "rank" }, String(rank)),
    h("span", {}, `${good} of ${matches.length} match`),
    h("span", { class: "cosine", title: "Likeness, at most 1" }, answer.score.toFixed(2)),
  );
  const bar = h("div", { class: "bars", "aria-hidden": "true" }, ...matches.map(([name, match]) => segment(name, match, state)));
  const alt = `${answer.item_id}: ${good} of ${matches.length} match`;
  return card(answer, state, go, alt, head, bar, facts(answer, state), tags(matches, state));
}

// What was filtered by.
function facts({ fields }, { filters }) {
  const names = [...filters.keys()].filter((name) => fields[name] !== undefined);
  const texts = names.map((name) => `${words(name)} ${told(fields[name])}`);
  return texts.length ? h("p", { class: "facts" }, texts.join(" · ")) : null;
}

function segment(name, match, state) {
  const classes = [match.good ? "good" : "", match.predicted ? "predicted" : "", name in state.edits ? "asked" : ""];
  return h("i", { class: classes.join(" ").trim(), title: `${words(name)}: ${words(match.value)}` });
}

// What was asked for first, marked as had or not; then what differs.
function tags(matches, state) {
  const asked = matches.filter(([name]) => name in state.edits);
  const others = matches.filter(([name, match]) => !(name in state.edits) && !match.good);
  const all = [...asked, ...others];
  const list = all.slice(0, SHOWN_TAGS).map(([name, match]) =>
    h(
      "li",
      {
        class: `${match.good ? "good" : "bad"}${match.predicted ? " predicted" : ""}`,
        title: match.predicted ? "As it looks; the catalogue does not say." : null,
      },
      h("span", { class: "mark", "aria-hidden": "true" }, match.good ? "✓" : "≠"),
      h("span", { class: "of" }, words(name)),
      shown(match.value),
    ),
  );
  const left = all.length - list.length;
  return h("ul", { class: "tags" }, ...list, left > 0 ? h("li", { class: "rest" }, `and ${left} more differ`) : null);
}

// The whole card leads on; a link, so that it opens in another tab too.
function card(item, { filters }, go, alt, ...below) {
  const next = { ...empty(), filters, item: item.item_id };
  const click = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(next);
  };
  const link = { href: toQuery(next), onclick: click, title: `Go on from ${item.item_id}` };
  return h("li", { class: "card", "data-item": item.item_id }, h("a", link, frame(item, alt), ...below));
}

function frame(item, alt) {
  const image = h("img", { alt, loading: "lazy", decoding: "async" });
  if (item.has_picture) fill(image, item.item_id);
  return h("span", { class: item.has_picture ? "frame" : "frame none" }, image);
}

function describe(item) {
  const values = Object.entries(item.labels).map(([name, value]) => `${words(name)} ${words(value ?? item.seen[name])}`);
  return values.join(", ");
}
