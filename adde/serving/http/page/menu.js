// The one menu of the page: under what opened it, and focus goes back there.

import { byId } from "./dom.js";

const menu = byId("menu");
let opener = () => null; // finds what opened it, as rows are made anew

// `first`: selectors of what has the focus, the first of which is there.
export function open(find, first, ...children) {
  opener = find;
  menu.replaceChildren(...children);
  menu.showPopover({ source: find() });
  place(find());
  first.map((selector) => menu.querySelector(selector)).find(Boolean)?.focus();
}

export const close = () => menu.hidePopover();

// Within the window. On a phone the style sheet makes it a sheet at the bottom.
function place(button) {
  const chip = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const left = Math.max(8, Math.min(chip.left, innerWidth - width - 8));
  const below = chip.bottom + 6;
  const top = below + height < innerHeight - 8 ? below : Math.max(8, innerHeight - height - 8);
  menu.style.setProperty("--left", `${left}px`);
  menu.style.setProperty("--top", `${top}px`);
}

menu.addEventListener("toggle", (event) => {
  if (event.newState === "closed") opener()?.focus();
});
