// Items' pictures in <img>, which sends no key: where there is one, a picture is fetched with it as it comes near.

import { hasKey, picture, pictureAddress } from "./api.js";

const asked = new WeakMap(); // <img> -> id of the item whose picture it is to show
const near = new IntersectionObserver(come, { rootMargin: "400px" });

// Of an <img> that has shown nothing yet: a late picture then takes no other's place.
export function fill(image, id) {
  if (!hasKey()) {
    image.src = pictureAddress(id);
    return;
  }
  asked.set(image, id);
  image.classList.add("waiting");
  near.observe(image);
}

function come(entries) {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    fetched(target);
  }
}

// Nothing is kept here: the browser's own cache has it for the next <img>.
async function fetched(image) {
  try {
    const address = URL.createObjectURL(await picture(asked.get(image)));
    image.onload = image.onerror = () => URL.revokeObjectURL(address);
    image.loading = "eager"; // it is here; and one that has left the page loads too
    image.src = address;
  } catch (error) {
    // Its text is shown instead, until it may be asked for again.
    if (error.retryAfter > 0 && image.isConnected) setTimeout(() => near.observe(image), 1000 * error.retryAfter);
  }
  image.classList.remove("waiting");
}
