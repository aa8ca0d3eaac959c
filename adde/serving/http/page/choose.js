// The menu that changes one attribute: to a value, more of one, or anything but some; and how much it counts.

import { h, shown, words } from "./dom.js";
import { AMOUNTS, mode, own, valuesOf } from "./edits.js";
import * as menu from "./menu.js";

const WEIGHTS = [0, 0.5, 1, 2, 4];
const MODES = { exactly: "Change to", more: "More", not: "Not" };

export function open(find, attribute, state, seen, change) {
  const { name } = attribute;
  const edit = own(state.edits, name);
  const set = (changes) => {
    menu.close();
    change(name, changes);
  };
  const values = h("div", {});
  const modes = h("div", { class: "modes", role: "group", "aria-label": "How to change it" });
  const show = (kind) => {
    const buttons = Object.entries(MODES).map(([each, text]) => pressed(text, each === kind, () => show(each)));
    modes.replaceChildren(...buttons);
    values.replaceChildren(choices(attribute, kind, edit, seen, set));
    values.append(kind === "more" && edit?.more ? amounts(edit, set) : "");
  };
  show(mode(edit));
  menu.open(
    find,
    ['[aria-checked="true"]', "[role=menu] button"],
    h("h3", { id: "menu-title" }, words(name)),
    modes,
    values,
    edit === undefined ? null : box("must", "Must have it", state.must.includes(name), (must) => set({ must })),
    weights(own(state.weights, name) ?? 1, state.only.length > 0, (weight) => set({ weight })),
    box("only", "Alike only in this", state.only.includes(name), (only) => set({ only })),
  );
}

function choices({ values }, kind, edit, seen, set) {
  const same = mode(edit) === kind;
  const chosen = edit !== undefined && same ? valuesOf(edit) : kind === "exactly" ? [seen.value] : [];
  const first = values.find((value) => chosen.includes(value)) ?? values[0];
  const choose = (value) => {
    if (kind === "more") return set({ edit: { more: value, amount: (same && edit?.amount) || AMOUNTS.More } });
    if (kind === "exactly") return set({ edit: value === seen.value ? null : value });
    const not = chosen.includes(value) ? chosen.filter((each) => each !== value) : [...chosen, value];
    return set({ edit: not.length ? { not } : null });
  };
  const buttons = values.map((value) =>
    h(
      "button",
      {
        type: "button",
        role: kind === "not" ? "menuitemcheckbox" : "menuitemradio",
        "aria-checked": String(chosen.includes(value)),
        tabindex: value === first ? 0 : -1,
        // All cannot be refused.
        disabled: kind === "not" && !chosen.includes(value) && chosen.length === values.length - 1,
        onclick: () => choose(value),
      },
      shown(value),
      value === seen.value ? h("small", {}, "now") : null,
    ),
  );
  return h("div", { class: "values", role: "menu", "aria-labelledby": "menu-title", onkeydown: arrows }, ...buttons);
}

function amounts(edit, set) {
  const each = Object.entries(AMOUNTS).map(([text, amount]) =>
    pressed(text, edit.amount === amount, () => set({ edit: { ...edit, amount } })),
  );
  return h("div", { class: "weights", role: "group", "aria-label": "How much more" }, h("span", {}, "How much more"), ...each);
}

function weights(weight, disabled, set) {
  const each = WEIGHTS.map((one) => pressed(one === 0 ? "not" : `×${one}`, one === weight, () => set(one), disabled));
  return h("div", { class: "weights", role: "group", "aria-label": "How much it counts" }, h("span", {}, "Counts"), ...each);
}

function pressed(text, on, click, disabled = false) {
  return h("button", { type: "button", "aria-pressed": String(on), disabled, onclick: click }, text);
}

function box(name, text, checked, set) {
  const input = h("input", { type: "checkbox", checked });
  input.addEventListener("change", () => set(input.checked));
  return h("label", { class: `box ${name}` }, input, text);
}

function arrows(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const each = [...event.currentTarget.querySelectorAll("button:not(:disabled)")];
  const at = each.indexOf(document.activeElement);
  let next = null;
  if (step !== undefined) next = (at + step + each.length) % each.length;
  if (event.key === "Home") next = 0;
  if (event.key === "End") next = each.length - 1;
  if (next === null) return;
  event.preventDefault();
  each[next].focus();
}
