// Codes and pictures on canvases.

import { about, palette } from "./model.js";

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The codes of a latent frame, hidden ones as dots, those of the last step outlined. */
export function drawGrid(canvas, codes, fresh) {
  const { rows, cols } = about;
  const cell = Math.max(6, Math.min(48, Math.floor(768 / Math.max(rows, cols))));
  if (canvas.width !== cols * cell) [canvas.width, canvas.height] = [cols * cell, rows * cell];
  const context = canvas.getContext("2d");
  const gap = cell > 12 ? cell / 16 : 0.5, round = cell / 8;
  const [hidden, dot, accent] = ["hidden", "dot", "accent"].map(color);
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < rows * cols; i++) {
    const x = (i % cols) * cell, y = Math.floor(i / cols) * cell, code = codes ? codes[i] : -1;
    context.beginPath();
    context.roundRect(x + gap, y + gap, cell - 2 * gap, cell - 2 * gap, round);
    if (code < 0) {
      context.fillStyle = hidden;
      context.fill();
      context.beginPath();
      context.arc(x + cell / 2, y + cell / 2, cell / 14 + 0.5, 0, 7);
      context.fillStyle = dot;
      context.fill();
    } else {
      context.fillStyle = `rgb(${palette.subarray(3 * code, 3 * code + 3).join()})`;
      context.fill();
      if (fresh?.has(i)) {
        context.lineWidth = cell / 12;
        context.strokeStyle = accent;
        context.stroke();
      }
    }
  }
}

export function drawPicture(canvas, image) {
  if (canvas.width !== about.width || canvas.height !== about.height) [canvas.width, canvas.height] = [about.width, about.height];
  const context = canvas.getContext("2d");
  image ? context.putImageData(image, 0, 0) : context.clearRect(0, 0, canvas.width, canvas.height);
}

export function pictures(rgb, count) {
  const bytes = Uint8Array.from(atob(rgb), (c) => c.charCodeAt(0)), size = about.width * about.height;
  return Array.from({ length: count }, (_, n) => {
    const image = new ImageData(about.width, about.height);
    for (let i = 0; i < size; i++) {
      image.data.set(bytes.subarray(3 * (n * size + i), 3 * (n * size + i) + 3), 4 * i);
      image.data[4 * i + 3] = 255;
    }
    return image;
  });
}
