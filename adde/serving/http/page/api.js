// Requests to the server that the page came from, and to no other.

const KEY = "adde-key";
const pictures = new Map(); // address of an item's picture -> promise of an address that <img> takes

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? "The server gave no answer that can be read.");
    this.status = status;
    this.retryAfter = body.retryAfter;
  }
}

export function keep(key) {
  sessionStorage.setItem(KEY, key); // of this tab; gone when it is closed
  pictures.clear();
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export const schema = () => ask("/v1/schema");
export const item = (id) => ask(`/v1/items/${encodeURIComponent(id)}`);
export const someItems = (count, seed) => ask(`/v1/items?count=${count}&seed=${seed}`);

export function search(request, picture, signal) {
  if (!picture) {
    const headers = { "content-type": "application/json" };
    return ask("/v1/search", { method: "POST", headers, body: JSON.stringify(request), signal });
  }
  const body = new FormData();
  body.append("image", picture, "picture");
  body.append("request", JSON.stringify(request));
  return ask("/v1/search", { method: "POST", body, signal });
}

// An <img> sends no key, so where there is one the picture is fetched with it.
export function pictureAddress(id) {
  const address = `/v1/items/${encodeURIComponent(id)}/picture`;
  if (!hasKey()) return Promise.resolve(address);
  if (!pictures.has(address))
    pictures.set(
      address,
      send(address).then(async (response) => URL.createObjectURL(await response.blob())),
    );
  return pictures.get(address);
}

async function ask(address, options) {
  return (await send(address, options)).json();
}

async function send(address, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key === null ? {} : { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server cannot be reached. Is it running?" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Problem(response.status, { ...body, retryAfter: response.headers.get("retry-after") });
}
