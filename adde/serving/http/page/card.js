// One item: its picture, name, price, the link to the shop, and in one line what differs.

import { capital, h, plain, told, words } from "./dom.js";
import { fill } from "./images.js";
import { empty, toQuery } from "./state.js";

// `details`: [text, {guess}] each; as many are shown as one line takes.
export function card(item, cards, filters, go, details = []) {
  const next = { ...empty(), filters, item: item.item_id };
  const click = (event) => {
    if (!plain(event)) return;
    event.preventDefault();
    go(next);
  };
  const name = nameOf(item, cards);
  const alt = [name, ...details.map(([text]) => text)].join(", ");
  return h(
    "li",
    { class: "card", "data-item": item.item_id },
    h("a", { class: "go", href: toQuery(next), onclick: click, title: `Go on from ${name}` }, frame(item, alt), heading(item, cards)),
    facts(item, cards, filters),
    line(details),
  );
}

export const nameOf = (item, cards) => String(item.fields[cards.title_field] ?? item.item_id);

function heading(item, cards) {
  const named = item.fields[cards.title_field] !== undefined;
  return h("span", { class: named ? "name" : "name id" }, nameOf(item, cards));
}

// Price, what was filtered by, and the link; also of the item that was started from.
export function facts(item, cards, filters = new Map()) {
  const filtered = [...filters.keys()].filter((name) => name !== cards.price_field && item.fields[name] !== undefined);
  const parts = [
    price(item, cards),
    ...filtered.map((name) => h("span", { class: "fact" }, `${capital(words(name))} ${told(item.fields[name])}`)),
    shopLink(item, cards),
  ].filter(Boolean);
  return parts.length ? h("p", { class: "facts" }, ...parts) : null;
}

function price(item, { price_field, currency }) {
  const value = item.fields[price_field];
  if (value === undefined || value === null) return null;
  const style = currency ? { style: "currency", currency } : {};
  return h("span", { class: "price" }, typeof value === "number" ? value.toLocaleString(undefined, style) : String(value));
}

function shopLink(item, { link_template }) {
  if (!link_template) return null;
  let missing = false;
  const address = link_template.replaceAll(/\{\{|\}\}|\{([^}]*)\}/g, (whole, name, at) => {
    if (name === undefined) return whole[0];
    const value = name === "item_id" ? item.item_id : item.fields[name];
    missing ||= value === undefined || value === null;
    return at === 0 ? String(value) : encodeURIComponent(value); // a field that is a whole address is left as it is
  });
  if (missing || !/^(https?:\/\/|\/(?!\/))/.test(address)) return null; // a field may hold anything
  return h("a", { class: "shop", href: address, target: "_blank", rel: "noopener" }, "View", h("span", { "aria-hidden": "true" }, " ↗"));
}

function frame(item, alt) {
  const image = h("img", { alt, loading: "lazy", decoding: "async" });
  if (item.has_picture) fill(image, item.item_id);
  return h("span", { class: item.has_picture ? "frame" : "frame none" }, image);
}

function line(details) {
  if (!details.length) return null;
  const parts = details.flatMap(([text, { guess }], at) => [
    at ? " · " : "",
    guess ? h("em", { title: `${text}: a guess from the picture, the catalogue does not say` }, text) : text,
  ]);
  return h("p", { class: "differs", title: details.map(([text]) => text).join(", ") }, ...parts);
}
