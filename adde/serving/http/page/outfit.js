// What a shopper decided about an outfit, and how an address says it.
//
// {kept: Map of a category to the item that belongs to the outfit, without: [category left empty],
//  wants: Map of a category to a Map of attribute to value, skip: Map of a category to the number of
//  better answers that were passed over}

export const empty = () => ({ kept: new Map(), without: [], wants: new Map(), skip: new Map() });

// Whether a part of an address was one of these: keep.shoes=ID, want.shoes=colour=red, skip.shoes=1, without=shoes.
export function read(outfit, key, value) {
  if (key === "without") outfit.without.push(value);
  const [, kind, category] = key.match(/^(keep|want|skip)\.(.+)$/s) ?? [];
  if (kind === "keep") outfit.kept.set(category, value);
  if (kind === "skip" && Number(value) >= 1) outfit.skip.set(category, Math.min(99, Math.floor(Number(value))));
  if (kind === "want") {
    const [name, ...rest] = value.split("="); // a name's own "=" is escaped
    set(outfit, category, decoded(name), rest.join("="));
  }
  return key === "without" || kind !== undefined;
}

export function write(query, { kept, without, wants, skip }) {
  for (const [category, id] of kept) query.set(`keep.${category}`, id);
  for (const [category, each] of wants)
    for (const [name, value] of each) query.append(`want.${category}`, `${encodeURIComponent(name)}=${value}`);
  for (const [category, count] of skip) query.set(`skip.${category}`, count);
  for (const category of without) query.append("without", category);
}

// Copies in which one slot is otherwise. What others passed over counts no more where the outfit is another.

export function keep(outfit, category, id) {
  const next = { ...structuredClone(outfit), skip: new Map() };
  if (id === null) next.kept.delete(category);
  else next.kept.set(category, id);
  return next;
}

export function leave(outfit, category, empty) {
  const next = outfit.kept.has(category) ? keep(outfit, category, null) : structuredClone(outfit);
  next.without = next.without.filter((each) => each !== category);
  if (empty) next.without.push(category);
  return next;
}

export function want(outfit, category, name, value) {
  const next = structuredClone(outfit);
  next.skip.delete(category);
  set(next, category, name, value);
  return next;
}

export function pass(outfit, category, count) {
  const next = structuredClone(outfit);
  next.skip.delete(category);
  if (count) next.skip.set(category, count);
  return next;
}

function set({ wants }, category, name, value) {
  const each = wants.get(category) ?? new Map();
  if (value === null) each.delete(name);
  else each.set(name, value);
  if (each.size) wants.set(category, each);
  else wants.delete(category);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
