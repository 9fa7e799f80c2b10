// What the page asks of /v1/explain, and what comes back, decoded.
import { grey } from "./drawing.js";

export const TOP = 5;  // classes that every answer has

/** A request for a picture's likeliest classes and those that were asked for beside them.
 *
 * Masks do not depend on the class: several classes cost one run.
 */
export function request(picture, preset, classes, include, accept = "application/json") {
  const form = new FormData();
  const more = [...picture.more].map((target) => `index:${target}`);
  form.append("image", picture.file);
  form.append("settings", JSON.stringify({ preset }));
  form.append("targets", JSON.stringify([`top${Math.min(TOP, classes)}`, ...more]));
  form.append("include", include);
  form.append("masks", "1000");
  return { method: "POST", body: form, headers: { Accept: accept } };
}

/** An answer: `targets` by class index with their maps, `masks`, and `box` as shares of the picture. */
export function decode(got, preset, seconds) {
  const [, height, width] = got.heatmap.shape, [count, rows, columns] = got.strongest_masks.shape;
  const heat = bytes(got.heatmap), masks = bytes(got.strongest_masks);
  const [left, top, right, bottom] = got.seen_box, size = got.picture;
  const targets = new Map();
  got.targets.forEach((target, i) => {
    if (!targets.has(target.index)) {
      targets.set(target.index, { ...target, map: grey(part(heat, i, width, height), width, height) });
    }
  });
  return {
    got, preset, seconds, targets,
    box: [left / size.width, top / size.height, right / size.width, bottom / size.height],
    cropped: left > 0.5 || top > 0.5 || right < size.width - 0.5 || bottom < size.height - 0.5,
    colors: bytes(got.colors),
    masks: got.strongest_masks.index.slice(0, count).map((index, k) => (
      { index, map: grey(part(masks, k, columns, rows), columns, rows) })),
  };
}

function bytes(array) {
  return Uint8Array.from(atob(array.data), (letter) => letter.charCodeAt(0));
}

function part(all, k, width, height) {
  return all.subarray(k * width * height, (k + 1) * width * height);
}
