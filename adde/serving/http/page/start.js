// The start page: a search box, categories, and items to start from.

import { byId, capital, h, told, words } from "./dom.js";
import { toFilters } from "./state.js";

export const PAGE = 24;

export function hide() {
  byId("start").hidden = true;
}

export function show(schema, state, go) {
  byId("start").hidden = false;
  const box = byId("words");
  if (document.activeElement !== box) box.value = state.words;
  const name = schema.cards?.category;
  const values = valuesOf(schema, name);
  const list = byId("categories");
  list.hidden = values.length < 2;
  const chips = [null, ...values].map((value) => chip(value, state, go));
  list.replaceChildren(...chips);
  list.setAttribute("aria-label", name ? capital(words(name)) : "Categories");
  byId("find").onsubmit = (event) => {
    event.preventDefault();
    go({ ...state, words: box.value.trim(), seed: 0 });
  };
  box.onsearch = () => box.value === "" && state.words && go({ ...state, words: "" }); // its cross
}

function chip(value, state, go) {
  const chosen = state.category === value;
  const click = () => {
    go({ ...state, category: value, seed: 0 });
  };
  const text = value === null ? "All" : capital(told(value));
  return h("li", {}, h("button", { type: "button", "aria-pressed": String(chosen), onclick: click }, text));
}

function valuesOf({ attributes, fields }, name) {
  const known = [...attributes, ...fields].find((each) => each.name === name);
  return (known?.values ?? []).map(String);
}

// What /v1/items is asked.
export function request(schema, state, offset) {
  const filters = new Map(state.filters);
  const name = schema.cards?.category;
  if (state.category !== null && name) filters.set(name, { values: [state.category] });
  const asked = { count: PAGE, seed: state.seed, filters: toFilters(filters, schema.fields) };
  if (state.words) asked.query = state.words;
  return offset ? { ...asked, offset } : asked;
}

export function heading({ words: text, category }, found) {
  const among = category === null ? "" : ` in ${words(category)}`;
  if (!found) return text ? `Nothing${among} fits “${text}”` : `Nothing${among} passes these filters`;
  if (text) return `“${text}”${among}`;
  return category === null ? "Start from an item, or drop a picture" : capital(words(category));
}
