// The query's attributes as chips, each of which opens the menu that changes it.

import { byId, h, shown, words } from "./dom.js";
import * as choose from "./choose.js";
import { mode, own, told, valuesOf } from "./edits.js";

// `seen`: {name: {value, confidence, known}} of the query before edits; `change(name, changes)` as `withChange`.
export function show(schema, state, seen, change) {
  const focused = document.activeElement?.dataset?.attribute;
  byId("attributes").replaceChildren(
    ...schema.attributes.map((attribute) => row(attribute, state, seen[attribute.name], change)),
  );
  if (focused) chip(focused)?.focus(); // the row was made anew
}

const chip = (name) => document.querySelector(`[data-attribute="${CSS.escape(name)}"]`);

function row(attribute, state, seen, change) {
  const { name } = attribute;
  const edit = own(state.edits, name);
  const weight = own(state.weights, name) ?? 1;
  const only = state.only.includes(name);
  const counts = state.only.length ? only : weight > 0;
  const classes = `attribute${edit === undefined ? "" : " edited"}${counts ? "" : " ignored"}`;
  return h(
    "li",
    { class: classes },
    h("span", { class: "name", id: `name-${name}` }, words(name)),
    h(
      "button",
      {
        class: "chip",
        type: "button",
        "data-attribute": name,
        "aria-haspopup": "dialog",
        "aria-label": label(name, state, seen, counts),
        onclick: () => choose.open(() => chip(name), attribute, state, seen, change),
      },
      ...(edit === undefined ? [shown(seen.value), guess(seen)] : changed(seen, edit)),
    ),
    only ? h("span", { class: "tag" }, "only") : null,
    weight === 1 || state.only.length ? null : h("span", { class: "tag" }, `×${weight}`),
    edit === undefined ? null : undo(name, change),
  );
}

function changed(seen, edit) {
  const kind = mode(edit);
  const word = kind === "exactly" ? null : h("span", {}, kind);
  return [h("s", {}, shown(seen.value)), h("span", { class: "arrow" }, "→"), word, ...valuesOf(edit).map(shown)];
}

// All that the row shows: of a button with a label nothing else is read out.
function label(name, state, seen, counts) {
  const edit = own(state.edits, name);
  const weight = own(state.weights, name) ?? 1;
  const parts = [`${words(name)}: ${seen.value === null ? "not there" : words(seen.value)}`];
  if (edit !== undefined) parts.push(`changed to ${told(edit)}`);
  else if (!known(seen)) parts.push(`a guess${sure(seen)}`);
  if (!counts) parts.push("does not count");
  else if (state.only.length) parts.push("alike only in this");
  else if (weight !== 1) parts.push(`counts ${weight} times`);
  return `${parts.join(", ")}. Change`;
}

const known = (seen) => seen.known ?? seen.confidence === 1;
const inPercent = (share) => Math.round(share * 100);
const sure = ({ confidence }) => (typeof confidence === "number" ? `, ${inPercent(confidence)} % sure` : "");

// What the classifier sees is no knowledge, and is marked.
function guess(seen) {
  if (known(seen)) return null;
  const title = `A guess from the picture${sure(seen)}`;
  if (typeof seen.confidence !== "number") return h("span", { class: "guess", title }, "guess");
  const meter = h("meter", { min: 0, max: 1, value: seen.confidence, "aria-hidden": "true" });
  return h("span", { class: "guess", title }, `guess ${inPercent(seen.confidence)} %`, meter);
}

function undo(name, change) {
  const click = () => change(name, { edit: null });
  const text = `Undo the change of ${words(name)}`;
  return h("button", { class: "undo", type: "button", "aria-label": text, title: text, onclick: click }, "×");
}
