// Pictures with a map or a mask over them, as vitcx.runtime.pictures.overlay draws them.

const SATURATION = 0.25, BASE_OPACITY = 0.5, UNSEEN = 0.45, CLOSED = 0.06;

/** A map of bytes as a canvas, so that the browser's own bilinear filter can enlarge it. */
export function grey(values, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.fill(values[i], 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The picture on a canvas of `scale` times its size. */
export function paint(canvas, bitmap, scale) {
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  // Few pixels are shown as they are.
  context.imageSmoothingEnabled = scale < 3;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context;
}

/** The colours of a map over what is painted.
 *
 * `box` is what the model saw, as shares of the picture; `strength` is from 0 to 1.
 */
export function overlay(context, map, box, colors, strength) {
  if (strength === 0) return;
  // The picture's own colours go as the overlay comes.
  const keep = 1 - Math.min(1, strength / 0.3) * (1 - SATURATION);
  mix(context, map, box, (pixels, i, value, seen) => {
    const light = 0.299 * pixels[i] + 0.587 * pixels[i + 1] + 0.114 * pixels[i + 2];
    const opacity = strength * (BASE_OPACITY + (1 - BASE_OPACITY) * value / 255);
    for (let c = 0; c < 3; c++) {
      const base = light + keep * (pixels[i + c] - light);
      pixels[i + c] = seen ? base * (1 - opacity) + colors[3 * value + c] * opacity : base * UNSEEN;
    }
  });
}

/** What a mask lets through of what is painted. */
export function through(context, map, box) {
  mix(context, map, box, (pixels, i, value, seen) => {
    const open = seen ? CLOSED + (1 - CLOSED) * value / 255 : CLOSED;
    for (let c = 0; c < 3; c++) pixels[i + c] *= open;
  });
}

/** A dashed line around what the model saw. */
export function outline(context, box) {
  const { width, height } = context.canvas;
  const [left, top, right, bottom] = box;
  const inside = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  context.lineWidth = Math.max(1.5, Math.max(width, height) / 500);
  for (const [color, offset] of [["#000b", 0], ["#fffd", 6]]) {
    context.strokeStyle = color;
    context.setLineDash([6, 6]);
    context.lineDashOffset = offset;
    context.strokeRect(...inside);
  }
  context.setLineDash([]);
}

function mix(context, map, box, change) {
  const { width, height } = context.canvas;
  const laid = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  const [left, top, right, bottom] = box;
  laid.imageSmoothingQuality = "high";
  laid.drawImage(map, left * width, top * height, (right - left) * width, (bottom - top) * height);
  const values = laid.getImageData(0, 0, width, height).data;
  const image = context.getImageData(0, 0, width, height);
  for (let i = 0; i < values.length; i += 4) change(image.data, i, values[i], values[i + 3] > 127);
  context.putImageData(image, 0, 0);
}
