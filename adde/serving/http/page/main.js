// The shopper's view: a picture or an item, what is seen in it, what should be otherwise, answers.

import * as answers from "./answers.js";
import * as api from "./api.js";
import * as attributes from "./attributes.js";
import { byId, h, words } from "./dom.js";
import * as filters from "./filters.js";
import * as images from "./images.js";
import * as menu from "./menu.js";
import * as pictures from "./pictures.js";
import { MOST, carried, changed, empty, fromQuery, started, toQuery, toRequest } from "./state.js";

let schema = null;
let state = fromQuery(location.search);
let running = new AbortController();

// Shows another state, as a step that "back" undoes.
function go(next) {
  const leap = next.item !== state.item || next.upload !== state.upload;
  history.pushState(null, "", toQuery(next));
  state = next;
  if (leap) scrollTo({ top: 0 });
  return show();
}

async function show() {
  running.abort();
  const { signal } = (running = new AbortController());
  byId("problem").hidden = byId("note").hidden = true;
  byId("main").setAttribute("aria-busy", "true");
  say("Looking …");
  try {
    schema ??= await api.schema();
    await (started(state) ? showSearch(signal) : showStart());
  } catch (error) {
    if (signal.aborted) return;
    complain(error);
  }
  if (!signal.aborted) byId("main").removeAttribute("aria-busy");
}

async function showStart() {
  const asked = state;
  const { items } = await api.someItems(24, state.seed);
  if (asked !== state) return;
  document.title = "This item, but …";
  byId("query").hidden = byId("more").hidden = true;
  filters.hide();
  byId("others").hidden = false;
  byId("heading").textContent = "Start from an item, or drop a picture";
  answers.showItems(items, go);
  say(`${schema.items.toLocaleString("en")} items`);
}

async function showSearch(signal) {
  const upload = state.upload === null ? null : pictures.get(state.upload);
  if (upload === undefined)
    throw new Error("The picture of this address stayed in the tab in which it was chosen. Choose it again.");
  const result = await search(upload, signal);
  if (signal.aborted) return;
  showQuery(upload);
  attributes.show(schema, state, result.seen, go);
  answers.showAnswers(result.answers, state, go);
  const count = result.answers.length;
  byId("others").hidden = true;
  byId("more").hidden = count < state.k || state.k >= MOST;
  byId("heading").textContent = count ? heading() : nothing();
  say(`${count} answers: ${byId("heading").textContent}`);
}

// Of the bundle that the schema is of: the server may have swapped it while the page was open.
async function search(upload, signal) {
  const ask = () => {
    filters.show(schema, state, go); // first: one that is refused can be taken away
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
  byId("note").textContent = `The catalogue has changed and no longer has: ${gone.map(words).join(", ")}.`;
  byId("note").hidden = false;
  return true;
}

function showQuery(upload) {
  byId("query").hidden = false;
  byId("title").textContent = state.item ?? "Your picture";
  document.title = `${state.item ?? "Your picture"}, but …`;
  byId("reset").hidden = !changed(state);
  byId("hint").hidden = changed(state);
  showPicture(upload);
}

// Another one is another element, on which no picture of the one before can come late.
function showPicture(upload) {
  const of = upload?.address ?? state.item;
  const before = byId("picture");
  if (before.dataset.of === of && before.naturalWidth) return;
  const alt = `What to start from: ${state.item ?? "your picture"}`;
  const image = h("img", { id: "picture", alt, "data-of": of, src: upload?.address });
  before.replaceWith(image);
  if (!upload) images.fill(image, state.item);
}

function nothing() {
  return state.filters.size ? "Nothing else passes these filters" : "Nothing else is in this catalogue";
}

function heading() {
  const edits = Object.entries(state.edits).map(([name, value]) => `${words(name)} ${words(value)}`);
  const base = state.only.length ? `Alike in ${state.only.map(words).join(", ")}` : "Most alike";
  return edits.length ? `${base}, but ${edits.join(", ")}` : base;
}

function say(text) {
  byId("status").textContent = text;
}

function complain(error) {
  say("");
  const box = byId("problem");
  const again = h("button", { class: "button", type: "button", onclick: show }, "Try again");
  const wait = error.retryAfter ? ` Come back in ${error.retryAfter} s.` : "";
  box.replaceChildren(h("p", {}, `${error.message}${wait}`), error.status === 401 ? keyForm() : again);
  box.hidden = false;
  box.querySelector("input")?.focus();
}

function keyForm() {
  const field = h("input", { type: "password", autocomplete: "off", "aria-label": "Key", placeholder: "Key" });
  const form = h("form", {}, field, h("button", { class: "button", type: "submit" }, "Use this key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      api.keep(field.value.trim());
    } catch (error) {
      complain(error);
      return;
    }
    show();
  });
  return form;
}

async function startFrom(file) {
  try {
    schema ??= await api.schema();
    await go({ ...empty(), filters: state.filters, upload: await pictures.add(file, schema.max_bytes) });
  } catch (error) {
    complain(error);
  }
}

byId("file").addEventListener("change", (event) => {
  if (event.target.files[0]) startFrom(event.target.files[0]);
  event.target.value = ""; // the same file again is a change again
});
byId("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(empty());
});
byId("others").addEventListener("click", () => go({ ...state, seed: state.seed + 1 }));
byId("more").addEventListener("click", () => go({ ...state, k: Math.min(MOST, state.k * 2) }));
byId("reset").addEventListener("click", () => go({ ...empty(), item: state.item, upload: state.upload, filters: state.filters }));
addEventListener("popstate", () => {
  state = fromQuery(location.search);
  menu.close();
  show();
});

let within = 0; // drag events come from every element on the way
addEventListener("dragenter", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  within += 1;
  byId("drop").classList.add("shown");
});
addEventListener("dragleave", () => {
  within = Math.max(0, within - 1);
  if (!within) byId("drop").classList.remove("shown");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  within = 0;
  byId("drop").classList.remove("shown");
  const [file] = event.dataTransfer.files;
  if (file) startFrom(file);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) startFrom(file);
});

show();
