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
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const words = (name) => name.replaceAll("_", " ");

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

// A value as it is shown: its dot and its words.
export const shown = (value) => h("span", { class: "value" }, swatch(value), words(value));
