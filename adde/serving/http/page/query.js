// What the search starts from, and the switches of what answers must have.

import * as api from "./api.js";
import { facts, nameOf } from "./card.js";
import { byId, h, words } from "./dom.js";
import { mustText, told } from "./edits.js";
import * as images from "./images.js";
import { changed } from "./state.js";

const known = new Map(); // id -> the item, for its name, price and link

export function hide() {
  byId("query").hidden = byId("musts").hidden = true;
}

export function show(state, schema, upload) {
  byId("query").hidden = false;
  const cards = schema.cards ?? {};
  name(state, cards);
  byId("reset").hidden = !changed(state);
  byId("hint").hidden = changed(state);
  const guessed = upload !== null && upload !== undefined;
  byId("hint").textContent = `${guessed ? "Guessed from your picture. " : ""}Choose a value to ask for another.`;
  showPicture(state, upload);
  if (state.item !== null && (cards.title_field || cards.price_field || cards.link_template)) fetchItem(state.item, cards);
}

function name({ item }, cards) {
  const found = known.get(item);
  const text = item === null ? "Your picture" : found ? nameOf(found, cards) : item;
  byId("title").textContent = text;
  document.title = `${text}, but …`;
  const told = found ? facts(found, cards) : null;
  byId("facts").replaceChildren(...(told?.childNodes ?? []));
  byId("facts").hidden = told === null;
  byId("query").dataset.item = item ?? "";
}

async function fetchItem(id, cards) {
  if (known.has(id)) return;
  const found = await api.item(id).catch(() => null); // the id is name enough
  if (found) known.set(id, found);
  if (byId("query").dataset.item === id) name({ item: id }, cards);
}

// Another one is another element, on which no picture of the one before can come late.
function showPicture(state, upload) {
  const of = upload?.address ?? state.item;
  const before = byId("picture");
  if (before.dataset.of === of && before.naturalWidth) return;
  const alt = `What to start from: ${state.item ?? "your picture"}`;
  const image = h("img", { id: "picture", alt, "data-of": of, src: upload?.address });
  before.replaceWith(image);
  if (!upload) images.fill(image, state.item);
}

// The switches of what answers must have.
export function musts(state, change) {
  const edits = Object.entries(state.edits);
  const focused = document.activeElement?.dataset?.must;
  byId("musts").hidden = edits.length === 0;
  byId("musts").replaceChildren(
    ...edits.map(([name, edit]) => {
      const on = state.must.includes(name);
      const click = () => change(name, { must: !on });
      const about = { type: "button", role: "switch", "aria-checked": String(on), "data-must": name, onclick: click };
      return h("button", { class: "switch", ...about }, h("i", { "aria-hidden": "true" }), mustText(name, edit));
    }),
  );
  if (focused) byId("musts").querySelector(`[data-must="${CSS.escape(focused)}"]`)?.focus(); // it was made anew
}

export function heading(state, count) {
  if (!count && state.must.length) return "Nothing here has all that it must have";
  if (!count) return state.filters.size ? "Nothing else passes these filters" : "Nothing else is in this catalogue";
  const edits = Object.entries(state.edits).map(([name, edit]) => `${words(name)} ${told(edit)}`);
  const base = state.only.length ? `Alike in ${state.only.map(words).join(", ")}` : "Most alike";
  return edits.length ? `${base}, but ${edits.join(", ")}` : base;
}
