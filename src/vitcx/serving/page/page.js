// One picture at a time. Its answers are kept by preset, each with the maps of several classes, so
// that only a preset or a class that has not been asked for yet costs a new run.
import { NoToken, ask } from "./server.js";
import { TOP, decode, request } from "./answers.js";
import { outline, overlay, paint, through } from "./drawing.js";

const at = (id) => document.getElementById(id);
const view = at("view");
const MASKS_SHOWN = 9;
const LARGEST = 1100, SMALLEST = 600;  // pixels of the longest side, as it is shown
const TITLES = { label: "Labels", value: "Values", similarity: "Similarity", norm: "Norm" };

let about = null;    // what the server has: model, classes, presets
let picture = null;  // {file, bitmap, answers: by preset, more: classes beside the likeliest}
let preset = null;   // the one that is chosen
let shown = null;    // {answer, target, masks}: what is on the page
let chosenMask = -1, pointedMask = -1;
let asking = null;   // AbortController of the run under way
let again = null;    // what "Try again" does

const later = (work) => { work().catch((error) => fail(error, () => later(work))); };
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const scoreOf = (one) => one.probability === undefined ? one.score.toPrecision(4) : percent(one.probability);

function say(text) {
  at("status").textContent = text;
  at("error").textContent = "";
  for (const id of ["retry", "give-token"]) at(id).hidden = true;
}

function fail(error, retry = null) {
  if (error.name === "AbortError") return;
  say("");
  at("error").textContent = error.message;
  again = retry;
  if (retry) at(error instanceof NoToken ? "give-token" : "retry").hidden = false;
}

async function learn() {
  if (about) return;
  about = await (await ask("v1/classes")).json();
  preset = about.preset;
  at("model").textContent = `Model: ${about.model}`;
  at("preset-list").replaceChildren(...about.presets.map(({ name }) => radio("preset", name, [name])));
  at("presets").hidden = false;
  at("names").replaceChildren(...about.classes.map((name) => new Option(name, name)));
  at("other").hidden = about.classes.length <= TOP;
  markPreset();
}

function radio(group, value, texts) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name: group, value });
  label.className = group;
  label.append(input, ...texts.map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  }));
  return label;
}

function check(group, value) {
  for (const input of document.getElementsByName(group)) input.checked = input.value === String(value);
}

function markPreset() {
  check("preset", preset);
  const { summary } = about.presets.find(({ name }) => name === preset);
  at("preset-summary").textContent = `${summary[0].toUpperCase()}${summary.slice(1)}.`;
}

let opened = 0;

async function open(file) {
  const mine = ++opened;
  say(`Opening ${file.name}…`);
  let bitmap = null;
  try { bitmap = await createImageBitmap(file); } catch { /* said below */ }
  if (mine !== opened) { bitmap?.close(); return; }
  if (!bitmap) {
    fail(new Error(`Your browser cannot show "${file.name}" as a picture. Choose a JPEG, PNG or WebP file.`));
    return;
  }
  asking?.abort();
  picture?.bitmap.close();
  picture = { file, bitmap, answers: new Map(), more: new Set() };
  shown = null;
  const chosenHere = document.activeElement === at("drop");
  at("drop").hidden = at("side").hidden = true;
  at("frame").hidden = at("actions").hidden = false;
  for (const id of ["strength-row", "save-picture", "save-numbers", "save-arrays"]) at(id).hidden = true;
  if (chosenHere) at("another").focus();
  draw();
  later(() => explain(null, preset));
}

// Show a class (null: the likeliest) with a preset (null: the server's); run if it is not known yet.
async function explain(target, wanted) {
  asking?.abort();
  asking = null;
  const held = picture.answers.get(wanted);
  if (held && (target === null || held.targets.has(target))) {
    present(held, target, "No new run was needed.");
    return;
  }
  const mine = asking = new AbortController(), of = picture;
  document.body.classList.add("busy");
  at("stop").hidden = false;
  try {
    await learn();
    preset = wanted ?? preset;
    markPreset();
    if (target !== null) of.more.add(target);
    say(`Running the preset ${preset}…`);
    const start = performance.now(), name = preset;
    const asked = request(of, name, about.classes.length, "heatmap,masks,colors");
    const got = await (await ask("v1/explain", { ...asked, signal: mine.signal })).json();
    const answer = decode(got, name, (performance.now() - start) / 1000);
    of.answers.set(name, answer);
    present(answer, target, "");
  } catch (error) {
    if (shown && asking === mine) {  // back to what is on the page
      preset = shown.answer.preset;
      markPreset();
      check("class", shown.target.index);
    }
    throw error;
  } finally {
    if (asking === mine) asking = null;
    if (!asking) { document.body.classList.remove("busy"); at("stop").hidden = true; }
  }
}

function present(answer, target, note) {
  const likeliest = answer.got.targets[0].index;
  const one = answer.targets.get(target ?? likeliest);
  const masks = answer.masks
    .map(({ index, map }) => ({ index, map, impact: one.impacts[index] }))
    .sort((a, b) => b.impact - a.impact).slice(0, MASKS_SHOWN);
  const fresh = shown?.answer !== answer;
  shown = { answer, target: one, masks };
  chosenMask = pointedMask = -1;
  preset = answer.preset;
  markPreset();
  if (fresh) listClasses();
  check("class", one.index);
  listMasks();
  for (const id of ["side", "strength-row", "save-picture", "save-numbers", "save-arrays"]) at(id).hidden = false;
  draw();
  const { got } = answer;
  say([`${about.classes[one.index]}, ${scoreOf(one)}.`,
    `Preset ${answer.preset}: ${got.masks} masks, ${got.settings.forward_passes} forward passes,`,
    `${answer.seconds.toFixed(1)} s.`, ...got.remarks.map((remark) => `Note: ${remark}.`), note]
    .join(" ").trim());
}

function draw() {
  const { bitmap } = picture, longest = Math.max(bitmap.width, bitmap.height);
  const scale = Math.min(LARGEST, Math.max(SMALLEST, longest)) / longest;
  const context = paint(view, bitmap, scale);
  const what = mark(context);
  if (shown?.answer.cropped && what) outline(context, shown.answer.box);
  at("caption").textContent = what;
  view.setAttribute("aria-label", what ? `${what}, over the picture` : "The picture");
  at("crop").hidden = !(shown?.answer.cropped && what);
  at("size").hidden = scale < 2;
  at("size").textContent = `The picture has ${bitmap.width} × ${bitmap.height} pixels and is shown enlarged.`;
}

// What is laid over the picture, in words; "" for nothing.
function mark(context) {
  if (!shown) return "";
  const { answer, target, masks } = shown, name = about.classes[target.index];
  const k = pointedMask >= 0 ? pointedMask : chosenMask;
  if (k >= 0) {
    through(context, masks[k].map, answer.box);
    return `Mask ${k + 1}, impact ${masks[k].impact.toFixed(3)} on ${name}`;
  }
  const strength = at("strength").value / 100;
  overlay(context, target.map, answer.box, answer.colors, strength);
  return strength > 0 ? `Map of ${name}` : "";
}

function listClasses() {
  const { answer } = shown;
  at("classes-title").textContent = TITLES[answer.got.target_kind] ?? "Classes";
  const score = (one) => one.probability ?? one.score;
  const sorted = [...answer.targets.values()].sort((a, b) => score(b) - score(a));
  at("classes").replaceChildren(...sorted.map((one) => {
    const label = radio("class", one.index, [about.classes[one.index], scoreOf(one)]);
    // Scores that are no probabilities (regression, similarity) have no share of a whole.
    label.style.setProperty("--share", `${(100 * (one.probability ?? 0)).toFixed(1)}%`);
    label.title = about.classes[one.index];
    return label;
  }));
}

function listMasks() {
  const { bitmap } = picture, scale = 160 / Math.max(bitmap.width, bitmap.height);
  at("masks").replaceChildren(...shown.masks.map(({ impact, map }, k) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const canvas = document.createElement("canvas"), number = document.createElement("span");
    through(paint(canvas, bitmap, scale), map, shown.answer.box);
    canvas.setAttribute("aria-hidden", "true");
    number.textContent = impact.toFixed(3);
    Object.assign(button, { type: "button", className: "mask" });
    button.setAttribute("aria-label", `Mask ${k + 1}, impact ${number.textContent}`);
    button.setAttribute("aria-pressed", "false");
    button.append(canvas, number);
    button.addEventListener("click", () => choose(chosenMask === k ? -1 : k));
    button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") point(k); });
    button.addEventListener("pointerleave", () => point(-1));
    item.append(button);
    return item;
  }));
}

function point(k) {
  if (k === pointedMask) return;
  pointedMask = k;
  draw();
}

function choose(k) {
  chosenMask = k;
  pointedMask = -1;
  document.querySelectorAll(".mask").forEach((button, i) => button.setAttribute("aria-pressed", String(i === k)));
  draw();
  say(k < 0 ? `Map of ${about.classes[shown.target.index]}.` : `${at("caption").textContent}.`);
}

function find(word) {
  const folded = word.trim().toLowerCase();
  const index = about.classes.findIndex((name) => name.toLowerCase() === folded);
  if (index >= 0) return index;
  if (/^\d{1,9}$/.test(folded) && Number(folded) < about.classes.length) return Number(folded);
  throw new Error(`The model has no class called "${word.trim()}". Choose one from the list.`);
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${picture.file.name.replace(/\.[^.]*$/, "") || "picture"}_${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function savePicture() {
  const canvas = document.createElement("canvas");
  const what = mark(paint(canvas, picture.bitmap, 1));  // all its pixels, and no dashed line
  const blob = await new Promise((done) => { canvas.toBlob(done, "image/png"); });
  if (!blob) throw new Error("Your browser cannot draw a picture of this size.");
  save(blob, `${(what || "picture").replace(/[^\p{L}\p{N}.]+/gu, "_")}.png`);
}

function saveNumbers() {
  const { colors, ...got } = shown.answer.got;
  const named = { image: picture.file.name, ...got };
  save(new Blob([JSON.stringify(named, null, 1)], { type: "application/json" }), `${shown.answer.preset}.json`);
}

async function saveArrays() {
  const name = shown.answer.preset;
  say(`Running the preset ${name} for the arrays…`);
  const asked = request(picture, name, about.classes.length, "", "application/x-npz");
  save(await (await ask("v1/explain", asked)).blob(), `${name}.npz`);
  say("The arrays are saved.");
}

at("drop").addEventListener("click", () => at("file").click());
at("another").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", (event) => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = "";
});
at("strength").addEventListener("input", () => {
  at("strength-value").textContent = `${at("strength").value} %`;
  draw();
});
at("preset-list").addEventListener("change", (event) => {
  const wanted = preset = event.target.value;
  markPreset();
  if (picture) later(() => explain(shown?.target.index ?? null, wanted));
});
at("classes").addEventListener("change", (event) => {
  const target = Number(event.target.value);
  later(() => explain(target, shown.answer.preset));
});
at("other").addEventListener("submit", (event) => {
  event.preventDefault();
  const word = at("other-name").value;
  later(async () => explain(find(word), preset));
});
at("stop").addEventListener("click", () => {
  asking?.abort();
  say("Stopped.");
  if (!shown) { again = () => later(() => explain(null, preset)); at("retry").hidden = false; }
});
for (const id of ["retry", "give-token"]) at(id).addEventListener("click", () => { say(""); again?.(); });
at("save-picture").addEventListener("click", () => later(savePicture));
at("save-numbers").addEventListener("click", saveNumbers);
at("save-arrays").addEventListener("click", () => later(saveArrays));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosenMask >= 0 && !at("token-dialog").open) choose(-1);
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
later(learn);
