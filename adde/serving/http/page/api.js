// Requests to the server that the page came from, under whatever prefix, and to no other.

const KEY = "adde-key";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? "The server gave no answer that can be read.");
    this.status = status;
    this.retryAfter = body.retryAfter;
  }
}

export function keep(key) {
  // A header takes Latin-1 alone; what is copied out of a text often has its quotes around it.
  const [odd] = key.match(/[^\x20-\x7e\xa0-\xff]/u) ?? [];
  if (odd) throw new Problem(401, { detail: `This is no key, as none has the character ${odd} in it. Copy the key alone, without quotes.` });
  sessionStorage.setItem(KEY, key); // of this tab; gone when it is closed
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export const schema = () => ask("v1/schema");
export const item = (id) => ask(`v1/items/${encodeURIComponent(id)}`);
export const someItems = ({ filters, ...asked }) =>
  ask(`v1/items?${new URLSearchParams({ ...asked, filters: JSON.stringify(filters) })}`);

export const search = (request, picture, signal) => ask("v1/search", post(request, picture, signal));
export const complete = (request, picture, signal) =>
  ask("v1/complete", post(request, picture, signal));
export const drawn = async (request, picture, signal) =>
  (await send("v1/draw", post(request, picture, signal))).blob();

function post(request, picture, signal) {
  if (!picture) {
    const headers = { "content-type": "application/json" };
    return { method: "POST", headers, body: JSON.stringify(request), signal };
  }
  const body = new FormData();
  body.append("image", picture, "picture");
  body.append("request", JSON.stringify(request));
  return { method: "POST", body, signal };
}

export const pictureAddress = (id) => `v1/items/${encodeURIComponent(id)}/picture`;
export const picture = async (id) => (await send(pictureAddress(id))).blob();

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
  if (response.status === 401)
    throw new Problem(401, { detail: key === null ? "This server asks for a key." : "The server does not know this key." });
  const body = await response.json().catch(() => ({}));
  throw new Problem(response.status, { ...body, retryAfter: response.headers.get("retry-after") });
}
