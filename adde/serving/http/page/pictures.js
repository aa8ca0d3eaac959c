// Pictures that the shopper brings: they stay in this tab and go to the server for each search.

const kept = new Map(); // name in the address -> {file, address}
const SIDE = 2000; // of what is sent where the file itself would be refused

export const get = (name) => kept.get(name);

export async function add(file, maxBytes) {
  const small = file.size > maxBytes * 0.9 || file.size === 0 ? await shrink(file) : file;
  const name = Math.random().toString(36).slice(2, 10);
  kept.set(name, { file: small, address: URL.createObjectURL(file) });
  return name;
}

async function shrink(file) {
  const unreadable = new Error("This file cannot be read as a picture. JPEG, PNG and WebP can.");
  const bitmap = await createImageBitmap(file).catch(() => {
    throw unreadable;
  });
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(unreadable)), "image/jpeg", 0.92),
  );
}
