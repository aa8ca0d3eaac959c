// What the page shows, as an object and as the query string that can be shared.
//
// {item, upload, edits: {name: edit}, must: [name], weights: {name: number}, only: [name], k,
//  filters: Map of a field's name to {values: [text]} or {min: number, max: number}, one or both}
// and of the start page {words, category, seed}; `outfit` is that of outfit.js.
// `upload` names a picture that lies in this tab alone: it is kept out of the address's reach.

import { read, valuesOf, write } from "./edits.js";
import * as outfits from "./outfit.js";

export const FIRST = 12;
export const MORE = 24;
export const MOST = 1000; // of which the server tells

export function empty() {
  const query = { item: null, upload: null, edits: {}, must: [], weights: {}, only: [], filters: new Map(), k: FIRST };
  return { ...query, words: "", category: null, seed: 0, outfit: outfits.empty() };
}

export function fromQuery(search) {
  const state = empty();
  for (const [name, value] of new URLSearchParams(search)) {
    if (name === "item") state.item = value;
    else if (name === "picture") state.upload = value;
    else if (read(state.edits, name, value) || outfits.read(state.outfit, name, value)) continue;
    else if (name.startsWith("weight.") && value !== "" && Number(value) >= 0)
      state.weights[name.slice(7)] = Number(value);
    else if (name === "only") state.only.push(value);
    else if (name === "must") state.must.push(value);
    else if (name.startsWith("is.")) (filterOf(state, name.slice(3)).values ??= []).push(value);
    else if (/^(min|max)\./.test(name) && value.trim() !== "" && Number.isFinite(Number(value)))
      filterOf(state, name.slice(4))[name.slice(0, 3)] = Number(value);
    else if (name === "k" && Number(value) >= 1) state.k = Math.min(MOST, Math.floor(Number(value)));
    else if (name === "q") state.words = value.slice(0, 200);
    else if (name === "in") state.category = value;
    else if (name === "seed" && Number(value) >= 0) state.seed = Math.floor(Number(value)) % 2 ** 32;
  }
  state.must = state.must.filter((name) => Object.hasOwn(state.edits, name));
  return state;
}

function filterOf(state, name) {
  if (!state.filters.has(name)) state.filters.set(name, {});
  return state.filters.get(name);
}

export function toQuery(state) {
  const query = new URLSearchParams();
  if (state.item !== null) query.set("item", state.item);
  else if (state.upload !== null) query.set("picture", state.upload);
  for (const [name, edit] of Object.entries(state.edits)) write(query, name, edit);
  for (const name of state.must) query.append("must", name);
  for (const [name, value] of Object.entries(state.weights)) query.set(`weight.${name}`, value);
  for (const name of state.only) query.append("only", name);
  for (const [name, { values, min, max }] of state.filters) {
    for (const value of values ?? []) query.append(`is.${name}`, value);
    if (!values && min !== undefined) query.set(`min.${name}`, min);
    if (!values && max !== undefined) query.set(`max.${name}`, max);
  }
  if (started(state)) outfits.write(query, state.outfit);
  if (started(state) && state.k !== FIRST) query.set("k", state.k);
  if (!started(state) && state.words) query.set("q", state.words);
  if (!started(state) && state.category !== null) query.set("in", state.category);
  if (!started(state) && state.seed) query.set("seed", state.seed);
  const text = query.toString();
  return text ? `?${text}` : "./";
}

export function started(state) {
  return state.item !== null || state.upload !== null;
}

export function changed(state) {
  return [state.edits, state.weights, state.only].some((part) => Object.keys(part).length > 0);
}

// What /v1/search is asked, but for the picture. `fields` are the schema's.
export function toRequest(state, fields) {
  const { edits, must, weights, only: like, k } = state;
  const asked = { edits, weights, like, k, filters: toFilters(state.filters, fields) };
  if (must.length) asked.must = must;
  return state.item === null ? asked : { ...asked, item: state.item };
}

export function toFilters(filters, fields) {
  const asked = [...filters].map(([name, { values, min, max }]) => {
    const field = fields.find((each) => each.name === name);
    return [name, values ? values.flatMap((text) => typed(text, field)) : { min, max }];
  });
  return Object.fromEntries(asked);
}

// What a field holds that reads as the text of an address: 40 is not "40" to a filter.
function typed(text, field) {
  const held = field?.values.filter((value) => String(value) === text) ?? [];
  if (held.length) return held;
  const number = text.trim() === "" ? NaN : Number(text);
  return [typeof field?.min === "number" && Number.isFinite(number) ? number : text];
}

// What is left of a state as another schema follows one, and what is gone from it, in names and values.
// What neither of them knows stays: the server says what is wrong with it.
export function carried(state, before, now) {
  const next = structuredClone(state);
  const gone = new Set();
  const knows = ({ attributes, fields }, name) => [...attributes, ...fields].some((each) => each.name === name);
  // Of a field not all values are listed.
  const has = ({ attributes }, name, value) => attributes.find((each) => each.name === name)?.values.includes(value);
  const isGone = (name, value) => {
    if (knows(before, name) && !knows(now, name)) gone.add(name);
    else if (has(before, name, value) && has(now, name, value) === false) gone.add(`${name} ${value}`);
    else return false;
    return true;
  };
  for (const [name, edit] of Object.entries(state.edits))
    if (valuesOf(edit).some((value) => isGone(name, value))) delete next.edits[name];
  next.must = state.must.filter((name) => Object.hasOwn(next.edits, name));
  for (const name of Object.keys(state.weights)) if (isGone(name)) delete next.weights[name];
  next.only = state.only.filter((name) => !isGone(name));
  for (const [name, { values }] of state.filters) {
    const left = values?.filter((value) => !isGone(name, value));
    if (isGone(name) || left?.length === 0) next.filters.delete(name);
    else if (left) next.filters.get(name).values = left;
  }
  return [next, [...gone]];
}

// A copy with the filter of one field changed; null takes it away.
export function withFilter(state, name, filter) {
  const next = { ...structuredClone(state), k: FIRST };
  if (filter === null) next.filters.delete(name);
  else next.filters.set(name, filter);
  return next;
}

// A copy with one attribute's edit, "must", weight or "only" changed; null takes it away.
export function withChange(state, name, { edit, must, weight, only }) {
  const next = structuredClone(state);
  next.k = FIRST;
  if (edit !== undefined) set(next.edits, name, edit);
  if (must !== undefined) next.must = switched(next.must, name, must);
  next.must = next.must.filter((each) => Object.hasOwn(next.edits, each));
  if (weight !== undefined) set(next.weights, name, weight === 1 ? null : weight);
  if (only !== undefined) next.only = switched(next.only, name, only);
  return next;
}

function switched(names, name, on) {
  return [...names.filter((each) => each !== name), ...(on ? [name] : [])];
}

function set(mapping, name, value) {
  if (value === null) delete mapping[name];
  else mapping[name] = value;
}
