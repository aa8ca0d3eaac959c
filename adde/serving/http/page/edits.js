// What is asked of one attribute: "red", {not: ["black"]}, or {more: "red", amount: 0.5}; as /v1/search has it.

import { words } from "./dom.js";

export const AMOUNTS = { "A little": 0.25, More: 0.5, "Much more": 0.75 };

export const mode = (edit) => (edit?.not ? "not" : edit?.more ? "more" : "exactly");
export const valuesOf = (edit) => edit?.not ?? [edit?.more ?? edit];

// "red", "not black or grey", "more red".
export function told(edit) {
  const values = valuesOf(edit).map(words).join(" or ");
  return { not: `not ${values}`, more: `more ${values}`, exactly: values }[mode(edit)];
}

// Values that say nothing without the attribute's name.
const BARE = /^(yes|no|true|false|none|other|unknown|\d.*)$/i;

function named(name, value) {
  return BARE.test(value) ? `${words(name)} ${words(value)}` : words(value);
}

const list = (name, edit) => valuesOf(edit).map((value) => named(name, value)).join(" or ");

// Of the answers that have all that was asked for, and of the others.
export function dividers(edits) {
  const each = Object.entries(edits);
  const shown = each.filter(([, edit]) => !edit.not).map(([name, edit]) => list(name, edit));
  const refused = each.filter(([, edit]) => edit.not).map(([name, edit]) => `not ${list(name, edit)}`);
  const has = [...(shown.length ? [`has ${shown.join(" and ")}`] : []), ...refused].join(", ");
  if (each.length > 1) return [has, "close, but not all of it"];
  const [[name, edit]] = each;
  return [has, `close, but ${edit.not ? "" : "not "}${list(name, edit)}`];
}

export const mustText = (name, edit) => `${edit.not ? "Never" : "Only"} ${list(name, edit)}`;

// In an address: but.colour=red, not.colour=black, more.colour=red with amount.colour=0.25.
export function write(query, name, edit) {
  const kind = mode(edit);
  for (const value of valuesOf(edit)) query.append(`${kind === "exactly" ? "but" : kind}.${name}`, value);
  if (kind === "more" && edit.amount !== AMOUNTS.More) query.set(`amount.${name}`, edit.amount);
}

// What an object has under a name of the shop's, which may be "constructor" or "toString".
export const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);

// Whether a part of an address was one of these.
export function read(edits, key, value) {
  const [, kind, name] = key.match(/^(but|not|more|amount)\.(.+)$/s) ?? [];
  if (kind === "but") edits[name] = value;
  else if (kind === "not") edits[name] = { not: [...(own(edits, name)?.not ?? []), value] };
  else if (kind === "more") edits[name] = { more: value, amount: AMOUNTS.More };
  else if (kind === "amount" && own(edits, name)?.more && Number(value) > 0 && Number(value) <= 1)
    edits[name].amount = Number(value);
  return kind !== undefined;
}
