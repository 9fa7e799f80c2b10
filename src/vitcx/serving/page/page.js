"use strict";
// One picture at a time: ask /v1/explain for the maps of one class, draw them on a canvas.

const at = (id) => document.getElementById(id);
const view = at("view");
let names = null;      // class names by index
let token = "";
let picture = null;    // {file, bitmap}: the picture shown
let answer = null;     // the server's, decoded
let alone = -1;        // the mask under the pointer, or -1
let asking = null;     // AbortController of the request under way

const SATURATION = 0.25, BASE_OPACITY = 0.5, UNSEEN = 0.45;  // as vitcx.runtime.pictures.overlay draws

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

function bytes(array) {
  return Uint8Array.from(atob(array.data), (letter) => letter.charCodeAt(0));
}

async function ask(path, options = {}) {
  for (;;) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(path, { ...options, headers });
    if (response.status === 401) { token = await askToken(); continue; }
    const body = await response.json();
    if (!response.ok) throw new Error(body.error || `the server said ${response.status}`);
    return body;
  }
}

function askToken() {
  const dialog = at("token-dialog");
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(at("token").value.trim()), { once: true });
  });
}

async function open(file) {
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { bitmap = null; }
  if (!bitmap) { say("This file is not a picture that your browser can show.", true); return; }
  picture = { file, bitmap };
  answer = null;
  at("drop").hidden = true;
  at("controls").hidden = false;
  view.hidden = false;
  await explain(null);
}

async function explain(target) {
  if (asking) asking.abort();
  const mine = asking = new AbortController();
  document.body.classList.add("busy");
  say("Looking…");
  if (!answer) draw();
  try {
    names ??= await loadNames();
    const form = new FormData();
    form.append("image", picture.file);
    form.append("include", "heatmap,masks,colors");
    form.append("masks", "9");
    if (target !== null) form.append("targets", `index:${target}`);
    const start = performance.now();
    const got = await ask("v1/explain", { method: "POST", body: form, signal: mine.signal });
    answer = decode(got);
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    say(`${got.masks} masks, ${got.settings.forward_passes} forward passes, ${seconds} s`);
    at("side").hidden = false;
    listClasses();
    listMasks();
    draw();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    if (asking === mine) { asking = null; document.body.classList.remove("busy"); }
  }
}

async function loadNames() {
  const found = await ask("v1/classes");
  at("model").textContent = `Model: ${found.model}`;
  return found.classes;
}

function decode(got) {
  const [, height, width] = got.heatmap.shape;
  const [count, rows, columns] = got.strongest_masks.shape;
  const all = bytes(got.strongest_masks), size = rows * columns;
  return {
    targets: got.targets, top: got.top_classes, box: got.seen_box,
    heat: grey(bytes(got.heatmap), width, height),
    colors: bytes(got.colors),
    masks: Array.from({ length: count }, (_, k) => ({
      impact: got.strongest_masks.impact[k],
      map: grey(all.subarray(k * size, (k + 1) * size), columns, rows),
    })),
  };
}

// A map as a canvas, so that the browser's own bilinear filter can enlarge it.
function grey(values, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.fill(values[i], 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Pixels of a map laid over the picture, at the size of `target`.
function laid(map, target) {
  const canvas = new OffscreenCanvas(target.width, target.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const scaleX = target.width / picture.bitmap.width, scaleY = target.height / picture.bitmap.height;
  const [left, top, right, bottom] = answer.box;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(map, left * scaleX, top * scaleY, (right - left) * scaleX, (bottom - top) * scaleY);
  return context.getImageData(0, 0, target.width, target.height).data;
}

function paint(canvas, longest, mix) {
  const { bitmap } = picture;
  const scale = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (!mix) return;
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  mix(image.data);
  context.putImageData(image, 0, 0);
}

function draw() {
  if (!picture) return;
  if (!answer) { paint(view, 1100); return; }
  if (alone >= 0) { paint(view, 1100, (pixels) => through(pixels, answer.masks[alone].map, view)); return; }
  const strength = at("strength").value / 100;
  if (strength === 0) { paint(view, 1100); return; }
  paint(view, 1100, (pixels) => {
    const heat = laid(answer.heat, view), colors = answer.colors;
    // The picture's own colours go as the overlay comes.
    const keep = 1 - Math.min(1, strength / 0.3) * (1 - SATURATION);
    for (let i = 0; i < pixels.length; i += 4) {
      const light = 0.299 * pixels[i] + 0.587 * pixels[i + 1] + 0.114 * pixels[i + 2];
      const seen = heat[i + 3] > 127, value = heat[i];
      const opacity = strength * (BASE_OPACITY + (1 - BASE_OPACITY) * value / 255);
      for (let c = 0; c < 3; c++) {
        const base = light + keep * (pixels[i + c] - light);
        pixels[i + c] = seen ? base * (1 - opacity) + colors[3 * value + c] * opacity : base * UNSEEN;
      }
    }
  });
}

function through(pixels, map, canvas) {
  const mask = laid(map, canvas);
  for (let i = 0; i < pixels.length; i += 4) {
    const open = mask[i + 3] > 127 ? 0.06 + 0.94 * mask[i] / 255 : 0.06;
    for (let c = 0; c < 3; c++) pixels[i + c] *= open;
  }
}

function listClasses() {
  const chosen = answer.targets[0].index;
  const shown = answer.top.some((one) => one.index === chosen) ? answer.top
    : [...answer.top, answer.targets[0]];
  at("classes").replaceChildren(...shown.map(({ index, probability, score }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "class";
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(index === chosen));
    // Scores that are no probabilities (regression, similarity) have no share of a whole.
    const percent = probability === undefined ? 0 : 100 * probability;
    button.style.setProperty("--share", `${percent.toFixed(1)}%`);
    const name = document.createElement("span"), share = document.createElement("span");
    name.textContent = button.title = names[index];
    share.textContent = probability === undefined ? score.toPrecision(4) : `${percent.toFixed(1)} %`;
    button.append(name, share);
    button.addEventListener("click", () => explain(index));
    return button;
  }));
}

function listMasks() {
  alone = -1;
  at("masks").replaceChildren(...answer.masks.map(({ impact, map }, k) => {
    const figure = document.createElement("figure");
    figure.className = "mask";
    figure.tabIndex = 0;
    const canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    paint(canvas, 160, (pixels) => through(pixels, map, canvas));
    caption.textContent = impact.toFixed(3);
    figure.append(canvas, caption);
    const show = (which) => () => { alone = which; draw(); };
    figure.addEventListener("pointerenter", show(k));
    figure.addEventListener("pointerleave", show(-1));
    figure.addEventListener("focus", show(k));
    figure.addEventListener("blur", show(-1));
    return figure;
  }));
}

at("file").addEventListener("change", (event) => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = "";
});
at("another").addEventListener("click", () => at("file").click());
at("strength").addEventListener("input", () => {
  at("strength-value").textContent = `${at("strength").value} %`;
  draw();
});
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) open(file);
});
