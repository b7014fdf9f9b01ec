// Maps as they come from Python: bytes to colours and numbers. Pure.

import { clamp } from "./geometry.js";

function bytesOf(view) {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

// A map's steps (0 to 255) as RGBA: the palette's colour, and with `fading` the root of the strength as opacity, so
// that weak places can be seen, too.
export function coloured(steps, palette, fading) {
  const strengths = bytesOf(steps);
  const colours = bytesOf(palette);
  const pixels = new Uint8ClampedArray(4 * strengths.length);
  strengths.forEach((step, i) => {
    pixels.set(colours.subarray(3 * step, 3 * step + 3), 4 * i);
    pixels[4 * i + 3] = fading ? Math.round(Math.sqrt(255 * step)) : 255;
  });
  return pixels;
}

export function ramp(palette) {
  const colours = bytesOf(palette);
  const stops = [];
  for (let step = 0; step <= 255; step += 51) stops.push(`rgb(${[...colours.subarray(3 * step, 3 * step + 3)]})`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

// For every position its attention A, vote Y for the class, and its best class with that one's vote.
export function readCells(cells) {
  if (!cells.shape) return null;
  const [rows, columns] = cells.shape;
  const size = rows * columns;
  const bytes = bytesOf(cells.values);
  const values = new Float32Array(bytes.slice().buffer);
  const [attention, votes, most, classes] = [0, 1, 2, 3].map((i) => values.subarray(i * size, (i + 1) * size));
  const together = attention.map((share, i) => share * votes[i]);
  return { rows, columns, attention, votes, most, classes, together };
}

export function peak(values) {
  return values.indexOf(Math.max(...values));
}

export function cellAt(cells, x, y) {
  const column = Math.floor(clamp(x, 0, 0.9999) * cells.columns);
  const row = Math.floor(clamp(y, 0, 0.9999) * cells.rows);
  return row * cells.columns + column;
}

export function cellBox(cells, i, [height, width]) {
  const row = Math.floor(i / cells.columns);
  const column = i % cells.columns;
  const wide = width / cells.columns;
  const high = height / cells.rows;
  return [column * wide, row * high, (column + 1) * wide, (row + 1) * high];
}

export function stepCell(cells, i, right, down) {
  const row = clamp(Math.floor(i / cells.columns) + down, 0, cells.rows - 1);
  const column = clamp((i % cells.columns) + right, 0, cells.columns - 1);
  return row * cells.columns + column;
}

// The stacked bar: what each cell adds to the class's answer, the largest first; crumbs below `least` in one piece.
export function stack(cells, chosen, least = 0.004) {
  const order = [...cells.together.keys()].sort((a, b) => cells.together[b] - cells.together[a]);
  const pieces = [];
  let rest = 0;
  for (const i of order) {
    const share = cells.together[i];
    if (share >= least || i === chosen) pieces.push({ cell: i, share });
    else rest += share;
  }
  if (rest > 0) pieces.push({ cell: null, share: rest });
  return pieces;
}
