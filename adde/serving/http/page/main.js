// The shopper's view: a picture or an item, what is seen in it, what should be otherwise, answers.

import * as answers from "./answers.js";
import * as api from "./api.js";
import * as attributes from "./attributes.js";
import { byId, plain } from "./dom.js";
import * as drawing from "./drawing.js";
import * as filters from "./filters.js";
import * as goesWith from "./goes_with.js";
import * as menu from "./menu.js";
import { complain, note, say } from "./notices.js";
import * as pictures from "./pictures.js";
import * as query from "./query.js";
import * as start from "./start.js";
import { FIRST, MORE, MOST, carried, empty, fromQuery, started, toQuery, toRequest, withChange, withFilter } from "./state.js";

const GONE = "This item is no longer in the catalogue. Start from another.";
const ELSEWHERE = "The picture of this address stayed in the tab in which it was chosen. Choose it again, or start from an item.";

let schema = null;
let state = fromQuery(location.search);
let running = new AbortController();
let seen = { of: null, schema: null, values: {} }; // in what the search starts from
let loaded = 0; // answers or items that the server gave, of which the next page goes on

// Shows another state, as a step that "back" undoes.
function go(next) {
  const leap = next.item !== state.item || next.upload !== state.upload;
  history.pushState(null, "", toQuery(next));
  state = next;
  if (leap) scrollTo({ top: 0 });
  return show();
}

// Of the state as it is then, which may be another than what was shown when a menu was opened.
const change = (name, changes) => go(withChange(state, name, changes));
const filter = (name, next) => go(withFilter(state, name, next));

// Shows another outfit around the same item or picture; the answers stay.
function dress(outfit) {
  state = { ...state, outfit };
  history.pushState(null, "", toQuery(state));
  showOutfit();
}

async function showOutfit() {
  const upload = state.upload === null ? null : await pictures.get(state.upload);
  goesWith.show({ schema, state, seen: seen.values, upload, dress, go });
}

async function show() {
  running.abort();
  const { signal } = (running = new AbortController());
  byId("problem").hidden = byId("note").hidden = true;
  await attempt(signal, async () => {
    schema ??= await api.schema();
    await (started(state) ? showSearch(signal) : showStart(signal));
  });
}

async function attempt(signal, work) {
  byId("main").setAttribute("aria-busy", "true");
  say("Looking …");
  try {
    await work();
  } catch (error) {
    if (signal.aborted) return;
    complain(error, show);
  }
  if (!signal.aborted) byId("main").removeAttribute("aria-busy");
}

async function showStart(signal) {
  const { items } = await api.someItems(start.request(schema, state, 0));
  if (signal.aborted) return;
  document.title = "This item, but …";
  query.hide();
  goesWith.hide();
  drawing.hide();
  start.show(schema, state, go);
  filters.show(schema, state, filter);
  byId("others").hidden = state.words !== "" || !items.length;
  byId("heading").textContent = start.heading(state, items.length);
  answers.clear();
  answers.addItems(items, state, schema.cards ?? {}, go);
  went(items.length, start.PAGE);
  say(`${byId("heading").textContent}; ${schema.items.toLocaleString("en")} items in the catalogue`);
}

// The start page in the place of what is not there any more.
async function startInstead(text, signal) {
  state = { ...empty(), filters: state.filters };
  history.replaceState(null, "", toQuery(state));
  note(text);
  await showStart(signal);
}

async function showSearch(signal) {
  const upload = state.upload === null ? null : await pictures.get(state.upload);
  if (upload === undefined) return startInstead(ELSEWHERE, signal);
  const of = state.item ?? state.upload;
  if (seen.of === of && seen.schema === schema) showChanges(seen.values); // at once: what is clicked next is clicked on this
  let result;
  try {
    result = await search(upload, signal);
  } catch (error) {
    if (error.status === 404 && state.item !== null) return startInstead(GONE, signal);
    throw error;
  }
  if (signal.aborted) return;
  start.hide();
  query.show(state, schema, upload);
  seen = { of, schema, values: result.seen };
  showChanges(seen.values);
  answers.clear();
  answers.add(result.answers, state, schema.cards ?? {}, go);
  drawing.show(state, schema, upload, signal);
  const count = result.answers.length;
  byId("others").hidden = true;
  byId("heading").textContent = query.heading(state, count);
  went(count, state.k);
  say(`${count} answers: ${byId("heading").textContent}`);
  showOutfit();
}

function showChanges(values) {
  query.musts(state, change);
  attributes.show(schema, state, values, change);
}

// Of the bundle that the schema is of: the server may have swapped it while the page was open.
async function search(upload, signal) {
  const ask = () => {
    filters.show(schema, state, filter); // first: one that is refused can be taken away
    return api.search(toRequest(state, schema.fields), upload?.file, signal);
  };
  const result = await ask().catch(async (error) => {
    if (error.status === 422 && (await renewed(signal))) return ask();
    throw error;
  });
  if (result.bundle !== schema.bundle) await renewed(signal);
  if (result.bundle !== schema.bundle) throw new Error("The server is changing its model. Try again in a moment.");
  return result;
}

// Reads the schema again, and tells whether that took anything from the state.
async function renewed(signal) {
  const now = await api.schema();
  signal.throwIfAborted();
  const [next, gone] = carried(state, schema, now);
  schema = now;
  if (!gone.length) return false;
  state = next;
  history.replaceState(null, "", toQuery(state));
  note(`The catalogue has changed and no longer has: ${gone.map((each) => each.replaceAll("_", " ")).join(", ")}.`);
  return true;
}

// How far the server's list was read, and whether it goes on.
function went(count, asked) {
  loaded = count;
  byId("more").hidden = count < asked || count + MORE > MOST;
}

// The next page, below what is there.
async function more() {
  const { signal } = running;
  await attempt(signal, async () => {
    const before = loaded;
    const [found, first] = await (started(state) ? moreAnswers(signal) : moreItems(signal));
    if (signal.aborted) return;
    went(before + found, before + MORE);
    if (found < MORE) byId("more").hidden = true;
    say(`${found} more`);
    first?.querySelector("a").focus({ preventScroll: true });
    first?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
}

async function moreAnswers(signal) {
  const upload = state.upload === null ? null : await pictures.get(state.upload);
  const asked = { ...toRequest(state, schema.fields), offset: loaded, k: MORE };
  const result = await api.search(asked, upload?.file, signal);
  if (result.bundle !== schema.bundle) throw new Error("The server has another model now.");
  state = { ...state, k: loaded + MORE };
  history.replaceState(null, "", toQuery(state));
  return [result.answers.length, answers.add(result.answers, state, schema.cards ?? {}, go)];
}

async function moreItems(signal) {
  const { items } = await api.someItems(start.request(schema, state, loaded));
  return [items.length, signal.aborted ? null : answers.addItems(items, state, schema.cards ?? {}, go)];
}

async function startFrom(file) {
  try {
    schema ??= await api.schema();
    await go({ ...empty(), filters: state.filters, upload: await pictures.add(file, schema.max_bytes) });
  } catch (error) {
    complain(error, show);
  }
}

byId("home").addEventListener("click", (event) => {
  if (!plain(event)) return;
  event.preventDefault();
  go(empty());
});
byId("others").addEventListener("click", () => go({ ...state, seed: state.seed + 1 }));
byId("more").addEventListener("click", more);
byId("reset").addEventListener("click", () => go({ ...empty(), item: state.item, upload: state.upload, filters: state.filters, outfit: state.outfit, k: FIRST }));
addEventListener("popstate", () => {
  state = fromQuery(location.search);
  menu.close();
  show();
});
pictures.accept(startFrom);
show();
