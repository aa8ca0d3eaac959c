// How the edited picture might look, drawn by a model, where the bundle has a decoder.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { told } from "./edits.js";

let address = null; // of the picture that is shown

export function hide() {
  byId("drawn").hidden = true;
  if (address) URL.revokeObjectURL(address);
  address = null;
}

// After the answers, which do not wait for it. Where it cannot be drawn, they stand alone.
export async function show(state, schema, upload, signal) {
  hide();
  if (!schema.draws || !Object.keys(state.edits).length) return;
  const asked = state.item === null ? { edits: state.edits } : { edits: state.edits, item: state.item };
  const picture = await api.drawn(asked, upload?.file, signal).catch(() => null);
  if (signal.aborted || !picture) return;
  address = URL.createObjectURL(picture);
  const edits = Object.entries(state.edits).map(([name, edit]) => `${name.replaceAll("_", " ")} ${told(edit)}`);
  byId("drawing").src = address;
  byId("drawing").alt = `Drawn by a model: ${edits.join(", ")}`;
  byId("drawn").hidden = false;
}
