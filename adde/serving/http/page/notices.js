// What the page says beside what was asked for: to all, to screen readers, and of what went wrong.

import { keep } from "./api.js";
import { byId, h } from "./dom.js";

export function say(text) {
  byId("status").textContent = text;
}

export function note(text) {
  byId("note").textContent = text;
  byId("note").hidden = false;
}

export function complain(error, retry) {
  say("");
  const box = byId("problem");
  const again = h("button", { class: "button", type: "button", onclick: retry }, "Try again");
  const wait = error.retryAfter ? ` Come back in ${error.retryAfter} s.` : "";
  box.replaceChildren(h("p", {}, `${error.message}${wait}`), error.status === 401 ? keyForm(retry) : again);
  box.hidden = false;
  box.querySelector("input")?.focus();
}

function keyForm(retry) {
  const field = h("input", { type: "password", autocomplete: "off", "aria-label": "Key", placeholder: "Key" });
  const form = h("form", {}, field, h("button", { class: "button", type: "submit" }, "Use this key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      keep(field.value.trim());
    } catch (error) {
      complain(error, retry);
      return;
    }
    retry();
  });
  return form;
}
