// What answers must have: the fields of the gallery's items as chips, and the menu that sets one.

import { byId, h, shown, told, words } from "./dom.js";
import * as menu from "./menu.js";

const list = byId("filters");

export function show(schema, state, change) {
  const focused = document.activeElement?.dataset?.filter;
  const known = schema.fields.map((field) => field.name);
  const { title_field: title, link_template: link } = schema.cards ?? {};
  const offered = schema.fields.filter(({ name }) => state.filters.has(name) || (name !== title && !link?.includes(`{${name}}`)));
  const others = [...state.filters.keys()].filter((name) => !known.includes(name)).map(unknown);
  const fields = [...offered, ...others];
  list.hidden = fields.length === 0;
  list.replaceChildren(...fields.map((field) => row(field, state.filters.get(field.name), change)));
  if (focused) chip(focused)?.focus(); // the row was made anew
}

// One that the address names and the schema does not: an attribute, a rare field or a mistake.
const unknown = (name) => ({ name, values: [], min: null, max: null });
const chip = (name) => list.querySelector(`[data-filter="${CSS.escape(name)}"]`);

function row(field, filter, change) {
  const { name } = field;
  const text = filter ? describe(filter) : "any";
  return h(
    "li",
    { class: filter ? "edited" : null },
    h(
      "button",
      {
        class: "chip",
        type: "button",
        "data-filter": name,
        "aria-haspopup": "dialog",
        "aria-label": `Filter by ${words(name)}: ${text}. Change`,
        onclick: () => open(field, filter, change),
      },
      h("span", { class: "of" }, words(name)),
      filter ? h("span", { class: "told" }, text) : null,
    ),
    filter ? undo(name, change) : null,
  );
}

function describe({ values, min, max }) {
  if (values) return values.length > 2 ? `${values.length} values` : values.map(told).join(" or ");
  if (min === undefined) return `up to ${max}`;
  return max === undefined ? `from ${min}` : `${min} – ${max}`;
}

function undo(name, change) {
  const click = () => {
    change(name, null);
    chip(name)?.focus();
  };
  const text = `Do not filter by ${words(name)}`;
  return h("button", { class: "undo", type: "button", "aria-label": text, title: text, onclick: click }, "×");
}

function open(field, filter, change) {
  const { name } = field;
  const [read, ...controls] = (field.values.length ? choices : field.min === null ? exactly : range)(field, filter);
  const set = (next) => {
    menu.close();
    change(name, next);
  };
  const submit = (event) => {
    event.preventDefault();
    set(read());
  };
  const any = h("button", { type: "button", onclick: () => set(null), disabled: !filter }, "Any");
  const buttons = h("div", { class: "act" }, any, h("button", { class: "go", type: "submit" }, "Show"));
  menu.open(
    () => chip(name),
    ["input:checked", "input"],
    h("form", { "aria-label": `Filter by ${words(name)}`, onsubmit: submit }, h("h3", {}, words(name)), ...controls, buttons),
  );
}

// Each of these: a function that reads the filter, null for none, and the elements.

function choices(field, filter) {
  const boxes = field.values.map((each) =>
    h("input", { type: "checkbox", value: String(each), checked: filter?.values?.includes(String(each)) }),
  );
  const labels = field.values.map((each, at) => {
    return h("label", { class: "choice" }, boxes[at], typeof each === "string" ? shown(each) : told(each));
  });
  const read = () => {
    const values = boxes.filter((box) => box.checked).map((box) => box.value);
    return values.length ? { values } : null;
  };
  return [read, h("div", { class: "values" }, ...labels)];
}

function range(field, filter) {
  const number = (bound) =>
    h("input", { type: "number", step: "any", inputmode: "decimal", placeholder: field[bound], value: filter?.[bound] });
  const [low, high] = [number("min"), number("max")];
  const read = () => {
    const bounds = { min: low.valueAsNumber, max: high.valueAsNumber };
    const given = Object.entries(bounds).filter(([, bound]) => !Number.isNaN(bound));
    return given.length ? Object.fromEntries(given) : null;
  };
  return [read, h("div", { class: "range" }, h("label", {}, "From", low), h("label", {}, "To", high))];
}

function exactly(_, filter) {
  const text = h("input", { type: "text", value: filter?.values?.[0], autocomplete: "off" });
  const read = () => (text.value.trim() ? { values: [text.value.trim()] } : null);
  return [read, h("div", { class: "range" }, h("label", {}, "Exactly", text))];
}
