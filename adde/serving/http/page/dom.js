// Elements without markup in strings: what a catalogue says is never read as HTML.

export const byId = (id) => document.getElementById(id);

// h("button", {class: "x", onclick: f, "aria-label": "y"}, "text", child, null)
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const words = (name) => name.replaceAll("_", " ");
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// A field's value, or its text in an address.
export function told(value) {
  const text = String(value);
  if (text === "true") return "yes";
  return text === "false" ? "no" : words(text);
}

// A dot of the colour that a value names, if it names one.
export function swatch(value) {
  if (!CSS.supports("color", value)) return null;
  const dot = h("span", { class: "swatch", "aria-hidden": "true" });
  dot.style.backgroundColor = value;
  return dot;
}

// A value as it is shown: its dot and its words. null: the attribute is not there.
export const shown = (value) => h("span", { class: "value" }, value === null ? "not there" : [swatch(value), words(value)]);

// A click that is to open another tab or window is the browser's.
export const plain = (event) => !(event.ctrlKey || event.metaKey || event.shiftKey || event.button);
