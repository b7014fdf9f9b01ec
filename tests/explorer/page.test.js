// The page's pure parts, under node: node --test tests/explorer/

import assert from "node:assert/strict";
import { test } from "node:test";

import { PATIENCE, makeGate, shownChoice } from "../../saol_lib/explorer/page/gate.js";
import { cut, dragged, edged, fitting, moved, placed, resized } from "../../saol_lib/explorer/page/geometry.js";
import { cellAt, cellBox, coloured, peak, readCells, stack, stepCell } from "../../saol_lib/explorer/page/maps.js";
import { boxSentence, patchSentence, percent, ranked, trueShares } from "../../saol_lib/explorer/page/words.js";

const SIZE = [32, 32];
const BOX = [4, 6, 20, 16];

test("a patch stays inside the picture and keeps its size", () => {
  assert.deepEqual(moved(BOX, 3, -2, SIZE), [7, 4, 23, 14]);
  assert.deepEqual(moved(BOX, 90, 90, SIZE), [16, 22, 32, 32]);
  assert.deepEqual(moved(BOX, -90, -90, SIZE), [0, 0, 16, 10]);
});

test("a corner never passes the opposite one", () => {
  assert.deepEqual(resized(BOX, "nw", 2, 3, SIZE), [6, 9, 20, 16]);
  assert.deepEqual(resized(BOX, "se", -90, -90, SIZE), [4, 6, 4, 6]);
  assert.deepEqual(resized(BOX, "sw", -90, 90, SIZE), [0, 6, 20, 32]);
});

test("the second picture always fills the patch", () => {
  for (const what of ["window", "picture", "both", "nw", "se"]) {
    let state = { box: BOX, shift: [0, 0] };
    for (const [right, down] of [
      [9, 3],
      [-40, 20],
      [13, -50],
      [5, 5],
      [80, 80],
    ]) {
      state = dragged(state, what, right, down, SIZE);
      const [x0, y0, x1, y1] = state.box;
      assert.ok(x0 - state.shift[0] >= 0 && x1 - state.shift[0] <= 32, `${what}: ${JSON.stringify(state)}`);
      assert.ok(y0 - state.shift[1] >= 0 && y1 - state.shift[1] <= 32, `${what}: ${JSON.stringify(state)}`);
    }
  }
  assert.deepEqual(fitting([9, -99], BOX, SIZE), [4, -16]);
});

test("dragging moves the window, the picture in it, or both", () => {
  const from = { box: BOX, shift: [0, 0] };
  assert.deepEqual(dragged(from, "window", 2, 1, SIZE), { box: [6, 7, 22, 17], shift: [0, 0] });
  assert.deepEqual(dragged(from, "picture", 2, 1, SIZE), { box: BOX, shift: [2, 1] });
  assert.deepEqual(dragged(from, "both", 2, 1, SIZE), { box: [6, 7, 22, 17], shift: [2, 1] });
});

test("a slider sets an edge without changing the extent, or the extent by moving the box in", () => {
  assert.deepEqual(edged(BOX, 0, false, 30, SIZE), [16, 6, 32, 16]);
  assert.deepEqual(edged(BOX, 1, true, 32, SIZE), [4, 0, 20, 32]);
});

test("frames and the cut are in percent", () => {
  assert.deepEqual(placed([8, 0, 16, 32], SIZE), { left: "25%", top: "0%", width: "25%", height: "100%" });
  const style = cut([8, 0, 16, 32], [8, 0], SIZE);
  assert.deepEqual(style, { left: "25%", top: "0%", clipPath: "inset(0% 75% 0% 0%)" });
});

function view(...values) {
  const padded = new Uint8Array([99, ...values]); // bytes rarely start where their buffer does
  return new DataView(padded.buffer, 1);
}

test("the stronger a map, the less one sees through it", () => {
  const palette = view(...Array.from({ length: 768 }, (_, i) => Math.floor(i / 3)));
  assert.deepEqual([...coloured(view(0, 200), palette, true)], [0, 0, 0, 0, 200, 200, 200, 226]);
  assert.deepEqual([...coloured(view(7), palette, false)], [7, 7, 7, 255]);
});

function cells() {
  const values = Float32Array.from([0.5, 0.25, 0.25, 0, 1, 0.5, 0, 1, 1, 0.5, 0.75, 1, 3, 3, 8, 3]);
  return readCells({ shape: [2, 2], values: view(...new Uint8Array(values.buffer)) });
}

test("cells are found, walked and framed", () => {
  const found = cells();
  assert.deepEqual([...found.together], [0.5, 0.125, 0, 0]);
  assert.equal(peak(found.attention), 0);
  assert.equal(cellAt(found, 0.99, 0.1), 1);
  assert.equal(cellAt(found, 1, 1), 3);
  assert.equal(stepCell(found, 1, 1, 0), 1);
  assert.equal(stepCell(found, 1, -1, 1), 2);
  assert.deepEqual(cellBox(found, 2, SIZE), [0, 16, 16, 32]);
  assert.equal(readCells({}), null);
});

test("the stacked bar adds up to the answer, with the chosen cell in it", () => {
  const pieces = stack(cells(), 3, 0.2);
  assert.deepEqual(
    pieces.map(({ cell, share }) => [cell, share]),
    [
      [0, 0.5],
      [3, 0],
      [null, 0.125],
    ],
  );
});

test("one request at a time, the newest wish next, stale answers dropped", () => {
  const sent = [];
  const gate = makeGate((wish, number) => sent.push([wish.x, number]), 7);
  for (let x = 0; x < 60; x += 1) gate.ask({ x });
  assert.deepEqual(sent, [[0, 8]]);
  assert.equal(gate.wished().x, 59);
  assert.equal(gate.answered(7), false);
  assert.equal(gate.answered(8), true);
  assert.deepEqual(sent, [
    [0, 8],
    [59, 9],
  ]);
  assert.equal(gate.wished().x, 59);
  assert.equal(gate.answered(8), false);
  assert.equal(gate.answered(9), true);
  assert.equal(gate.wished(), null);
});

test("an answer that never comes does not stop the page", () => {
  let time = 0;
  const sent = [];
  const gate = makeGate(
    (wish) => sent.push(wish),
    0,
    () => time,
  );
  gate.ask("a");
  time = PATIENCE;
  gate.ask("b");
  assert.deepEqual(sent, ["a"]);
  time = PATIENCE + 1;
  gate.ask("c");
  assert.deepEqual(sent, ["a", "c"]);
});

test("the page shows the wish, but of another model only once Python has answered", () => {
  const answered = { model: "digits", box: BOX };
  assert.equal(shownChoice(null, answered), answered);
  assert.equal(shownChoice({ model: "cifar10" }, answered), answered);
  const wish = { model: "digits", box: [0, 0, 1, 1] };
  assert.equal(shownChoice(wish, answered), wish);
});

const NUMBERS = { k: 2, saol: [0.7, 0.2, 0.1], gap: [0.1, 0.8, 0.1], true: [0.25, 0, 0], unknown: 0.75 };

test("an unknown true class is called unknown", () => {
  assert.equal(trueShares(NUMBERS, ["cat", "dog", "truck"]), "unknown 75\u00a0%, “cat” 25\u00a0%");
});

test("classes are listed by the first layer's answer, k always among them", () => {
  assert.deepEqual(ranked(NUMBERS), [0, 1, 2]);
  assert.deepEqual(ranked(NUMBERS, 2), [0, 1, 2]);
  assert.deepEqual(ranked({ ...NUMBERS, k: 0 }, 2), [0, 1]);
  assert.deepEqual(ranked({ ...NUMBERS, saol: null }), [1, 0, 2]);
});

test("sentences", () => {
  assert.equal(percent(0.0312), "3.1\u00a0%");
  assert.equal(percent(0.5), "50\u00a0%");
  assert.equal(percent(0), "0\u00a0%");
  assert.equal(patchSentence([0, 0, 0, 9], SIZE, 0), "The patch is empty: nothing is pasted.");
  assert.match(patchSentence([0, 0, 16, 32], SIZE, null), /covers 50\u00a0% of the picture\.$/);
  assert.equal(boxSentence({ box: null, iou: null }, "none"), "No box: no map lies over the picture.");
  assert.equal(boxSentence({ box: null, iou: null }, "attention"), "No box.");
  assert.equal(boxSentence({ box: null, iou: null }, "mask"), "No box: nothing is pasted.");
  assert.match(boxSentence({ box: BOX, iou: 0.5 }, "mask"), /with the patch: 0\.50\.$/);
});
