// "Goes with it": an outfit around what the search starts from, a slot for each other category.

import * as api from "./api.js";
import { card } from "./card.js";
import { byId, capital, h, shown, words } from "./dom.js";
import * as menu from "./menu.js";
import * as outfits from "./outfit.js";
import { changed, empty, toFilters, toQuery } from "./state.js";

const SAMPLE = 100; // items of a category whose values its menu offers

const place = byId("goes-with");
const sampled = new Map(); // model and category -> what its items show
let running = new AbortController();
let shownFor = null; // address of the outfit that is there or on its way
let focus = null; // [category, act] of the button that gets the focus when it is made anew

export function hide() {
  running.abort();
  shownFor = null;
  place.hidden = true;
}

// `page`: {schema, state, seen, upload, dress, go}; `dress(outfit)` shows another outfit.
export async function show(page) {
  const { schema, state, upload, seen } = page;
  const attribute = schema.attributes.find(({ name }) => name === schema.outfits);
  if (!attribute) return hide();
  const { item, upload: picture, outfit, filters } = state;
  place.classList.toggle("later", changed(state)); // whoever asks for another item looks at the answers first
  const address = schema.bundle + toQuery({ ...empty(), item, upload: picture, outfit, filters });
  if (address === shownFor) return;
  shownFor = address;
  running.abort();
  const { signal } = (running = new AbortController());
  const others = attribute.values.filter((value) => value !== seen[attribute.name]?.value);
  const slots = lay(others.filter((value) => !outfit.without.includes(value)));
  place.querySelector("ul").replaceChildren(...others.filter((value) => outfit.without.includes(value)).map((value) => back(value, page)));
  refocus();
  const kept = await keptItems(outfit, [...slots.keys()], signal);
  const items = new Set([item, ...[...kept.values()].map((each) => each.item_id)].filter((id) => id !== null));
  for (const [category, slot] of slots) fill(slot, category, kept.get(category), { ...page, items: [...items], file: upload?.file, signal });
}

// A place for each category at once, so that nothing moves when answers come; with what was in it before.
function lay(categories) {
  const before = new Map([...place.querySelectorAll(".slot")].map((slot) => [slot.dataset.slot, slot]));
  const slots = new Map(categories.map((category) => [category, before.get(category) ?? h("li", { class: "slot", "data-slot": category }, title(category), h("span", { class: "frame" }))]));
  for (const slot of slots.values()) slot.setAttribute("aria-busy", "true");
  place.querySelector("ol").replaceChildren(...slots.values());
  place.hidden = false;
  return slots;
}

const title = (category, ...more) => h("h3", {}, capital(words(category)), ...more);

// Those that the catalogue still has; a slot whose item is gone is completed.
async function keptItems({ kept }, categories, signal) {
  const found = await Promise.all(categories.filter((category) => kept.has(category)).map(async (category) => [category, await api.item(kept.get(category)).catch(() => null)]));
  return new Map(signal.aborted ? [] : found.filter(([, item]) => item !== null));
}

async function fill(slot, category, kept, page) {
  const { state, signal } = page;
  let answers = kept ? [kept] : [];
  let failure = null;
  if (!kept) {
    try {
      answers = (await api.complete(request(category, page), page.file, signal)).answers;
    } catch (error) {
      failure = error;
    }
  }
  if (signal.aborted) return;
  const passed = state.outfit.skip.get(category) ?? 0;
  const item = answers[passed % answers.length] ?? null;
  const content = item === null ? h("p", { class: "none" }, failure && failure.status !== 422 ? failure.message : "Nothing here fits") : card(item, page.schema.cards ?? {}, state.filters, page.go);
  const parts = [...(item === null ? [content] : content.childNodes), wants(category, page)];
  const acts = controls(category, item, Boolean(kept), answers.length > 1 ? passed + 1 : null, page);
  slot.replaceChildren(title(category, leaveOut(category, page)), ...parts.filter(Boolean), acts);
  slot.className = item === null ? "slot" : `card slot${kept ? " kept" : ""}`;
  slot.removeAttribute("aria-busy");
  refocus();
}

function request(category, { schema, state, items }) {
  const filters = { ...toFilters(state.filters, schema.fields), ...Object.fromEntries(state.outfit.wants.get(category) ?? []) };
  delete filters[schema.outfits]; // the slot's own
  const passed = state.outfit.skip.get(category) ?? 0;
  return { items, category, k: passed + 2, filters }; // two: whether there is another
}

function controls(category, item, kept, passed, page) {
  const { outfit } = page.state;
  const keep = () => page.dress(outfits.keep(outfit, category, kept ? null : item.item_id));
  const named = words(category);
  return h(
    "div",
    { class: "acts" },
    item === null ? null : act(category, "keep", kept ? "Kept" : "Keep", `Keep these ${named} and complete the rest around them`, keep, kept),
    kept || passed === null ? null : act(category, "another", "↻", `Show other ${named}`, () => page.dress(outfits.pass(outfit, category, passed))),
    kept ? null : act(category, "change", "Change", `Change what the ${named} should be`, () => change(category, page)),
  );
}

function leaveOut(category, { state, dress }) {
  return act(category, "empty", "×", `Leave the ${words(category)} out`, () => dress(outfits.leave(state.outfit, category, true)), null, "back");
}

// `after`: the act whose button gets the focus.
function act(category, name, text, label, click, pressed = null, after = name) {
  const run = () => {
    focus = [category, after];
    click();
  };
  return h("button", { type: "button", "data-of": category, "data-act": name, "aria-label": label, title: label, "aria-pressed": pressed === null ? null : String(pressed), onclick: run }, text);
}

function back(category, { state, dress }) {
  const click = () => dress(outfits.leave(state.outfit, category, false));
  return h("li", {}, act(category, "back", `+ ${capital(words(category))}`, `Put ${words(category)} back`, click, null, "empty"));
}

const button = (category, name) => place.querySelector(`[data-of="${CSS.escape(category)}"][data-act="${CSS.escape(name)}"]`);

function refocus() {
  const found = focus && button(...focus);
  if (!found || found.closest("[aria-busy]")) return;
  focus = null;
  found.focus();
}

// What was asked of a slot, each of which a click takes back.
function wants(category, { state, dress }) {
  const each = [...(state.outfit.wants.get(category) ?? [])].map(([name, value]) =>
    act(category, `want ${name}`, [shown(value), " ×"], `${capital(words(name))} ${words(value)}: take back`, () => dress(outfits.want(state.outfit, category, name, null)), null, "change"),
  );
  return each.length ? h("div", { class: "wants" }, ...each) : null;
}

async function change(category, page) {
  const { schema, state, dress } = page;
  const there = await valuesOf(schema, category).catch(() => null);
  const set = (name, value) => {
    menu.close();
    dress(outfits.want(state.outfit, category, name, value));
  };
  const asked = state.outfit.wants.get(category);
  const groups = schema.attributes
    .filter(({ name }) => name !== schema.outfits)
    .map((attribute) => group(attribute, asked?.get(attribute.name) ?? null, there?.get(attribute.name), set))
    .filter(Boolean);
  menu.open(() => button(category, "change"), ['[aria-pressed="true"]', "button"], title(category), ...groups);
}

function group({ name, values }, asked, there, set) {
  if (there?.size === 0 && asked === null) return null;
  const usual = values.filter((value) => there?.has(value) ?? true);
  const choices = [null, ...usual, ...values.filter((value) => !usual.includes(value))].map((value) =>
    h("button", { type: "button", "aria-pressed": String(value === asked), onclick: () => set(name, value) }, value === null ? "Any" : shown(value), value === null || usual.includes(value) ? null : h("small", {}, "rare")),
  );
  return h("div", { class: "asked", role: "group", "aria-label": words(name) }, h("h4", {}, capital(words(name))), ...choices);
}

// Attribute to the values that items of a category show: shoes are no caps.
async function valuesOf(schema, category) {
  const key = JSON.stringify([schema.bundle, category]);
  if (sampled.has(key)) return sampled.get(key);
  const { items } = await api.someItems({ count: SAMPLE, seed: 0, filters: { [schema.outfits]: [category] } });
  const there = new Map(schema.attributes.map(({ name }) => [name, new Set()]));
  for (const { labels } of items) for (const [name, value] of Object.entries(labels)) if (value !== null) there.get(name)?.add(value);
  sampled.set(key, there);
  return there;
}
