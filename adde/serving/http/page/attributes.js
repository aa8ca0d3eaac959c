// The query's attributes as chips, and the menu that changes one.

import { byId, h, shown, words } from "./dom.js";
import * as menu from "./menu.js";
import { withChange } from "./state.js";

const WEIGHTS = [0, 0.5, 1, 2, 4];

// `seen`: {name: {value, confidence}} of the query before edits.
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
  const edit = state.edits[name];
  const weight = state.weights[name] ?? 1;
  const only = state.only.includes(name);
  const counts = state.only.length ? only : weight > 0;
  const classes = `attribute${edit === undefined ? "" : " edited"}${counts ? "" : " ignored"}`;
  const percent = seen.confidence < 1 && edit === undefined ? confidence(seen.confidence) : null;
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
        "aria-haspopup": "menu",
        "aria-label": label(name, state, seen, counts),
        onclick: () => open(attribute, state, seen, change),
      },
      ...(edit === undefined ? [] : [h("s", {}, shown(seen.value)), h("span", { class: "arrow" }, "→")]),
      shown(edit ?? seen.value),
      percent,
    ),
    only ? h("span", { class: "tag" }, "only") : null,
    weight === 1 || state.only.length ? null : h("span", { class: "tag" }, `×${weight}`),
    edit === undefined ? null : undo(name, state, change),
  );
}

// All that the row shows: of a button with a label nothing else is read out.
function label(name, state, seen, counts) {
  const edit = state.edits[name];
  const weight = state.weights[name] ?? 1;
  const parts = [`${words(name)}: ${words(seen.value)}`];
  if (edit !== undefined) parts.push(`changed to ${words(edit)}`);
  else if (seen.confidence < 1) parts.push(`${inPercent(seen.confidence)} % sure`);
  if (!counts) parts.push("does not count");
  else if (state.only.length) parts.push("alike only in this");
  else if (weight !== 1) parts.push(`counts ${weight} times`);
  return `${parts.join(", ")}. Change`;
}

const inPercent = (share) => Math.round(share * 100);

function confidence(share) {
  const percent = inPercent(share);
  const meter = h("meter", { min: 0, max: 1, value: share, "aria-hidden": "true" });
  return h("span", { class: "confidence", title: `${percent} % sure` }, `${percent} %`, meter);
}

function undo(name, state, change) {
  const click = () => change(withChange(state, name, { edit: null }));
  const text = `Undo the change of ${words(name)}`;
  return h("button", { class: "undo", type: "button", "aria-label": text, title: text, onclick: click }, "×");
}

function open(attribute, state, seen, change) {
  const { name, values } = attribute;
  const chosen = state.edits[name] ?? seen.value;
  const choose = (value) => {
    menu.close();
    change(withChange(state, name, { edit: value === seen.value ? null : value }));
  };
  menu.open(
    () => chip(name),
    ['[aria-checked="true"]', "button"],
    h("h3", { id: "menu-title" }, words(name)),
    h(
      "div",
      { class: "values", role: "menu", "aria-labelledby": "menu-title", onkeydown: arrows },
      ...values.map((value) => choice(value, value === chosen, value === seen.value, choose)),
    ),
    weights(name, state, change),
    onlyThis(name, state, change),
  );
}

function choice(value, chosen, isSeen, choose) {
  return h(
    "button",
    {
      type: "button",
      role: "menuitemradio",
      "aria-checked": String(chosen),
      tabindex: chosen ? 0 : -1,
      onclick: () => choose(value),
    },
    shown(value),
    isSeen ? h("small", {}, "seen") : null,
  );
}

function weights(name, state, change) {
  const weight = state.weights[name] ?? 1;
  const buttons = WEIGHTS.map((each) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(each === weight),
        disabled: state.only.length > 0,
        onclick: () => {
          menu.close();
          change(withChange(state, name, { weight: each }));
        },
      },
      each === 0 ? "not" : `×${each}`,
    ),
  );
  return h("div", { class: "weights", role: "group", "aria-label": "How much it counts" }, h("span", {}, "Counts"), ...buttons);
}

function onlyThis(name, state, change) {
  const box = h("input", { type: "checkbox", checked: state.only.includes(name) });
  box.addEventListener("change", () => {
    menu.close();
    change(withChange(state, name, { only: box.checked }));
  });
  return h("label", { class: "only" }, box, "Alike only in this");
}

function arrows(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const choices = [...event.currentTarget.querySelectorAll("button")];
  const at = choices.indexOf(document.activeElement);
  let next = null;
  if (step !== undefined) next = (at + step + choices.length) % choices.length;
  if (event.key === "Home") next = 0;
  if (event.key === "End") next = choices.length - 1;
  if (next === null) return;
  event.preventDefault();
  choices[next].focus();
}
