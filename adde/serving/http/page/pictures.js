// Pictures that the shopper brings: they stay in this tab and go to the server for each search.

const kept = new Map(); // name in the address -> {file, address}
const SIDE = 1024; // of what is sent: a telephone's picture is megabytes, of which the server sees little

export const get = (name) => kept.get(name);

export async function add(file, maxBytes) {
  const small = await smaller(file, file.size > 0 && file.size <= maxBytes * 0.9);
  const name = Math.random().toString(36).slice(2, 10);
  kept.set(name, { file: small, address: URL.createObjectURL(file) });
  return name;
}

async function smaller(file, fits) {
  const unreadable = new Error("This file cannot be read as a picture. JPEG, PNG and WebP can.");
  const bitmap = await createImageBitmap(file).catch(() => {
    if (!fits) throw unreadable;
  });
  if (!bitmap) return file; // the server may know more of it than the browser
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  if (fits && scale === 1) {
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
