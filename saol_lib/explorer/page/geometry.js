// The patch: moving, resizing, and the second picture under it. Boxes are [x0, y0, x1, y1], half-open pixels. Pure.

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

export function moved(box, right, down, [height, width]) {
  const wide = box[2] - box[0];
  const high = box[3] - box[1];
  const x = clamp(box[0] + right, 0, width - wide);
  const y = clamp(box[1] + down, 0, height - high);
  return [x, y, x + wide, y + high];
}

export function resized(box, corner, right, down, [height, width]) {
  const [x0, y0, x1, y1] = box;
  const west = corner.includes("w");
  const north = corner.includes("n");
  return [
    west ? clamp(x0 + right, 0, x1) : x0,
    north ? clamp(y0 + down, 0, y1) : y0,
    west ? x1 : clamp(x1 + right, x0, width),
    north ? y1 : clamp(y1 + down, y0, height),
  ];
}

// The second picture may be moved as far as it still fills the patch.
export function fitting(shift, box, [height, width]) {
  return [clamp(shift[0], box[2] - width, box[0]), clamp(shift[1], box[3] - height, box[1])];
}

// What a drag by (right, down) from a state makes: "window", "picture" under it, or "both"; or a pulled corner.
export function dragged(from, what, right, down, size) {
  if (what === "picture") {
    return { box: from.box, shift: fitting([from.shift[0] + right, from.shift[1] + down], from.box, size) };
  }
  if (what !== "window" && what !== "both") {
    const box = resized(from.box, what, right, down, size);
    return { box, shift: fitting(from.shift, box, size) };
  }
  const box = moved(from.box, right, down, size);
  const along = what === "both" ? [box[0] - from.box[0], box[1] - from.box[1]] : [0, 0];
  const shift = [from.shift[0] + along[0], from.shift[1] + along[1]];
  return { box, shift: fitting(shift, box, size) };
}

// One edge or extent of a box set to a value, by a slider: axis 0 or 1; far: its width or height.
export function edged(box, axis, far, value, size) {
  const full = axis ? size[0] : size[1];
  const extent = far ? value : box[axis + 2] - box[axis];
  const start = clamp(far ? box[axis] : value, 0, full - extent);
  const changed = [...box];
  changed[axis] = start;
  changed[axis + 2] = start + extent;
  return changed;
}

export function sameBox(a, b) {
  return String(a.box) === String(b.box) && String(a.shift) === String(b.shift);
}

// CSS of a frame around a box, in percent of the picture.
export function placed(box, [height, width]) {
  return {
    left: `${(100 * box[0]) / width}%`,
    top: `${(100 * box[1]) / height}%`,
    width: `${(100 * (box[2] - box[0])) / width}%`,
    height: `${(100 * (box[3] - box[1])) / height}%`,
  };
}

// CSS of the second picture, moved by its shift and cut to the patch.
export function cut(box, shift, [height, width]) {
  const left = (100 * (box[0] - shift[0])) / width;
  const top = (100 * (box[1] - shift[1])) / height;
  const right = 100 - (100 * (box[2] - shift[0])) / width;
  const bottom = 100 - (100 * (box[3] - shift[1])) / height;
  return {
    left: `${(100 * shift[0]) / width}%`,
    top: `${(100 * shift[1]) / height}%`,
    clipPath: `inset(${top}% ${right}% ${bottom}% ${left}%)`,
  };
}
