// Pictures that the shopper brings: they stay in this tab, also when it is loaded anew, and go to the server for each search.

import { byId } from "./dom.js";

const kept = new Map(); // name in the address -> {file, address}
const SIDE = 1024; // of what is sent: a telephone's picture is megabytes, of which the server sees little
const HEAVY = 1_000_000; // bytes, above which a picture is packed anew, so that the tab can keep it
const KEEP = 4; // pictures
const STORED = "adde-picture ";

// A picture, or undefined where this tab has none of that name.
export async function get(name) {
  const text = kept.has(name) ? null : sessionStorage.getItem(STORED + name);
  if (text !== null) keep(name, fromText(text));
  return kept.get(name);
}

export async function add(file, maxBytes) {
  const small = await smaller(file, file.size > 0 && file.size <= maxBytes * 0.9);
  const name = Math.random().toString(36).slice(2, 10);
  keep(name, small);
  await store(name, small);
  return name;
}

function keep(name, file) {
  kept.set(name, { file, address: URL.createObjectURL(file) });
}

async function store(name, file) {
  const text = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(file);
  });
  const before = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  const names = [...before, name].slice(-KEEP);
  try {
    for (const old of before) if (!names.includes(old)) sessionStorage.removeItem(STORED + old);
    sessionStorage.setItem(STORED + name, text);
    sessionStorage.setItem(STORED, JSON.stringify(names));
  } catch {
    // No room, or none is given: the picture is there until the page is left.
  }
}

function fromText(text) {
  const [head, content] = text.split(",");
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5, head.indexOf(";")) });
}

async function smaller(file, fits) {
  const unreadable = new Error("This file cannot be read as a picture. JPEG, PNG and WebP can.");
  const bitmap = await createImageBitmap(file).catch(() => {
    if (!fits) throw unreadable;
  });
  if (!bitmap) return file; // the server may know more of it than the browser
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  if (fits && scale === 1 && file.size <= HEAVY) {
    bitmap.close();
    return file;
  }
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // as the server does where a picture is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(unreadable)), "image/jpeg", 0.92),
  );
}

// Calls `start` with a picture that is chosen, dropped or pasted.
export function accept(start) {
  byId("file").addEventListener("change", (event) => {
    if (event.target.files[0]) start(event.target.files[0]);
    event.target.value = ""; // the same file again is a change again
  });
  let within = 0; // drag events come from every element on the way
  const over = (entered) => {
    within = Math.max(0, entered);
    byId("drop").classList.toggle("shown", within > 0);
  };
  addEventListener("dragenter", (event) => [...event.dataTransfer.types].includes("Files") && over(within + 1));
  addEventListener("dragleave", () => over(within - 1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    const [file] = event.dataTransfer.files;
    if (file) start(file);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) start(file);
  });
}
