// How the page speaks: names, percentages, sentences. Pure.

export const OVERLAYS = {
  none: { symbol: "", name: "nothing", hint: "the mixed picture alone" },
  attention: { symbol: "A", name: "where it looks", hint: "SAOL's attention: it adds up to 100 %" },
  spatial: { symbol: "Y", name: "what each place says", hint: "how strongly each place votes for the class" },
  saol: { symbol: "A·Y", name: "together", hint: "attention times vote: it adds up to SAOL's answer" },
  mask: { symbol: "M", name: "what looks pasted", hint: "where SAOL sees a pasted patch" },
  cam: { symbol: "CAM", name: "GAP-FC's map", hint: "the class activation map of GAP-FC" },
  grad_cam: { symbol: "Grad-CAM", name: "GAP-FC's gradient", hint: "Grad-CAM of GAP-FC" },
};

export function percent(share) {
  const small = share > 0 && share < 0.0995;
  return `${(100 * share).toFixed(small ? 1 : 0)}\u00a0%`; // the sign never starts a line
}

export function className(classes, k) {
  return k < 0 ? "unknown" : classes[k];
}

export function rounded(value, largest) {
  if (Math.abs(value) < 1e-3 * Math.abs(largest)) return "0";
  return String(Number(value.toPrecision(2)));
}

// The classes to list: the ten strongest in either answer or in truth, and k; by the first layer's answer.
export function ranked(numbers, count = 10) {
  const first = numbers.saol ?? numbers.gap;
  const second = numbers.gap ?? first;
  const strength = first.map((share, k) => Math.max(share, second[k], numbers.true[k]));

  const byStrength = [...strength.keys()].sort((a, b) => strength[b] - strength[a]);
  const kept = new Set(byStrength.slice(0, count));
  kept.add(numbers.k);
  return [...kept].sort((a, b) => first[b] - first[a]);
}

export function best(shares) {
  return shares.indexOf(Math.max(...shares));
}

export function trueShares(numbers, classes) {
  const pairs = numbers.true.map((share, k) => [share, `“${classes[k]}”`]);
  pairs.push([numbers.unknown, "unknown"]);
  const seen = pairs.filter(([share]) => share > 5e-4);
  seen.sort((a, b) => b[0] - a[0]);
  return seen.map(([share, name]) => `${name} ${percent(share)}`).join(", ");
}

export function answers(numbers, classes) {
  const parts = [];
  for (const [layer, shares] of [
    ["SAOL", numbers.saol],
    ["GAP-FC", numbers.gap],
  ]) {
    if (!shares) continue;
    const k = best(shares);
    parts.push(`${layer} says “${classes[k]}” with ${percent(shares[k])}`);
  }
  return parts.join(", ");
}

export function patchSentence(box, size, held) {
  const [height, width] = size;
  const area = ((box[2] - box[0]) * (box[3] - box[1])) / (width * height);
  if (!area) return "The patch is empty: nothing is pasted.";
  const attention = held === null ? "" : ` and holds ${percent(held)} of the attention`;
  return `The patch covers ${percent(area)} of the picture${attention}.`;
}

export function boxSentence(numbers, overlay) {
  if (overlay === "none") return "No box: no map lies over the picture.";
  if (!numbers.box) return overlay === "mask" ? "No box: nothing is pasted." : "No box.";
  const found = "Box above the threshold";
  if (numbers.iou === null) return `${found}; no true box of this class is here.`;
  const truth = overlay === "mask" ? "the patch" : "the true box (dashed)";
  return `${found}. Overlap (IoU) with ${truth}: ${numbers.iou.toFixed(2)}.`;
}

export function pieceSentence(cells, chosen) {
  if (chosen === null) return "Click a place in the picture to see what it adds.";
  const [looks, says, adds] = [cells.attention, cells.votes, cells.together].map((values) => percent(values[chosen]));
  return `The place in ${where(cells, chosen)}: A ${looks} × Y ${says} = ${adds}.`;
}

export function placeSentence(cells, i, classes, isChosen) {
  const place = isChosen ? `In ${where(cells, i)}` : `It looks most at ${where(cells, i)}`;
  const says = className(classes, cells.classes[i]);
  return `${place}: A ${percent(cells.attention[i])}, says “${says}” with ${percent(cells.most[i])}`;
}

export function where(cells, i) {
  const row = Math.floor(i / cells.columns) + 1;
  const column = (i % cells.columns) + 1;
  return `row ${row}, column ${column}`;
}
