// What the page shows, as an object and as the query string that can be shared.
//
// {item, upload, edits: {name: value}, weights: {name: number}, only: [name], k, seed}
// `upload` names a picture that lies in this tab alone: it is kept out of the address's reach.

export const FIRST = 12;
export const MOST = 96;

export function empty() {
  return { item: null, upload: null, edits: {}, weights: {}, only: [], k: FIRST, seed: 0 };
}

export function fromQuery(search) {
  const state = empty();
  for (const [name, value] of new URLSearchParams(search)) {
    if (name === "item") state.item = value;
    else if (name === "picture") state.upload = value;
    else if (name.startsWith("but.")) state.edits[name.slice(4)] = value;
    else if (name.startsWith("weight.") && value !== "" && Number(value) >= 0)
      state.weights[name.slice(7)] = Number(value);
    else if (name === "only") state.only.push(value);
    else if (name === "k" && Number(value) >= 1) state.k = Math.min(MOST, Math.floor(Number(value)));
    else if (name === "seed" && Number(value) >= 0) state.seed = Math.floor(Number(value)) % 2 ** 32;
  }
  return state;
}

export function toQuery(state) {
  const query = new URLSearchParams();
  if (state.item !== null) query.set("item", state.item);
  else if (state.upload !== null) query.set("picture", state.upload);
  for (const [name, value] of Object.entries(state.edits)) query.set(`but.${name}`, value);
  for (const [name, value] of Object.entries(state.weights)) query.set(`weight.${name}`, value);
  for (const name of state.only) query.append("only", name);
  if (state.k !== FIRST) query.set("k", state.k);
  if (state.seed && !started(state)) query.set("seed", state.seed);
  const text = query.toString();
  return text ? `?${text}` : "/";
}

export function started(state) {
  return state.item !== null || state.upload !== null;
}

export function changed(state) {
  return [state.edits, state.weights, state.only].some((part) => Object.keys(part).length > 0);
}

// What /v1/search is asked, but for the picture.
export function toRequest(state) {
  const { edits, weights, only: like, k } = state;
  return { edits, weights, like, k, ...(state.item === null ? {} : { item: state.item }) };
}

// A copy with one attribute's value, weight or "only" changed; null takes it away.
export function withChange(state, name, { edit, weight, only }) {
  const next = structuredClone(state);
  next.k = FIRST;
  if (edit !== undefined) set(next.edits, name, edit);
  if (weight !== undefined) set(next.weights, name, weight === 1 ? null : weight);
  if (only !== undefined) {
    next.only = next.only.filter((each) => each !== name);
    if (only) next.only.push(name);
  }
  return next;
}

function set(mapping, name, value) {
  if (value === null) delete mapping[name];
  else mapping[name] = value;
}
