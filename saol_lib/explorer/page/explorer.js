// The page of the attention explorer. Python's `State` is the trait `choices`; the page shows the reader's newest wish
// at once, asks Python for the rest, one request at a time, and redraws from what comes back.

import { Answers, Sum } from "./answers.js";
import { Foot, Head, OverlayControls, PatchControls, Picker, linked } from "./controls.js";
import { makeGate, shownChoice } from "./gate.js";
import { readCells } from "./maps.js";
import { LiveRegion, download, useTraits } from "./parts.js";
import { Stage, Tiles } from "./stage.js";
import { Tour, stepState } from "./tour.js";
import { html, render, useEffect, useMemo, useReducer, useState } from "./vendor/preact-htm.js";
import { answers, patchSentence } from "./words.js";

const TRAITS = ["setup", "choices", "pictures", "tiles", "overlay", "cells", "numbers", "message"];
let count = 0;

function Explorer({ model, gate, id }) {
  const shown = useTraits(model, TRAITS);
  const [, redraw] = useReducer((times) => times + 1, 0);
  const [cell, setCell] = useState(null);
  const [moves, setMoves] = useState("both");
  const [tour, setTour] = useState("offered");
  const [note, tell] = useState("");
  const cells = useMemo(() => readCells(shown.cells), [shown.cells]);
  useEffect(() => tell(""), [shown.message, shown.choices]);

  const state = shownChoice(gate.wished(), shown.choices);
  const setup = shown.setup[shown.choices.model];
  const ask = (wish) => {
    gate.ask(wish);
    redraw();
  };
  const choose = (change) => ask({ ...shownChoice(gate.wished(), model.get("choices")), ...change });
  const start = (wish) => {
    setCell(null);
    ask(wish);
  };
  const opening = setup.scenes[0]?.state ?? { ...state, box: null, shift: [0, 0] };
  const walk = (step) => {
    setTour(step);
    start({ ...stepState(step, opening), model: state.model });
  };
  const leave = () => {
    if (typeof tour === "number") start({ ...opening, model: state.model, k: null, overlay: "attention" });
    setTour("away");
  };
  const send = (content, buffers) => model.send(content, undefined, buffers);

  const size = cells ? cells.attention.length : 0;
  const page = {
    id,
    setups: shown.setup,
    setup,
    state,
    shown,
    cells,
    cell: cell !== null && cell < size ? cell : null,
  };
  Object.assign(page, { setCell, moves, setMoves, tour, walk, leave, choose, start, tell, send });
  const message = note || shown.message;
  const spoken = `${answers(shown.numbers, setup.classes)}. ${patchSentence(state.box, setup.size, shown.numbers.held)}`;

  return html`
    <${Head} page=${page} />
    <${Tour} page=${page} />
    <p class=${`message saol-message ${message ? "told" : ""}`} role="alert">${message}</p>
    <div class="grid">
      <div class="left">
        <${Picker} page=${page} slot="base" title="Picture" />
        <${Picker} page=${page} slot="source" title="Patch from" />
      </div>
      <div class="middle"><${Stage} page=${page} /><${Tiles} page=${page} /><${PatchControls} page=${page} /></div>
      <div class="right">
        <${Answers} page=${page} />
        <${Sum} page=${page} />
        <${OverlayControls} page=${page} />
      </div>
    </div>
    <${Foot} page=${page} />
    <${LiveRegion} text=${spoken} />
  `;
}

// Else JupyterLab takes keys for its own: B adds a cell, D D deletes one. It asks the focused element alone.
function keepKeys(event) {
  event.target.dataset.lmSuppressShortcuts = "true";
}

// JupyterLab has a theme that the reader chose; Voila has one that nobody did, so there the system's counts.
function inLab() {
  return Boolean(document.querySelector(".jp-LabShell")) && !document.body.dataset.voila;
}

// The notebook's still picture goes once the page is alive; outside JupyterLab also what it says about running it.
function hideStill(withText) {
  for (const still of document.querySelectorAll('img[alt^="Still picture"]')) {
    still.style.display = "none";
    const texts = withText ? still.closest("p").parentElement.querySelectorAll("p") : [];
    for (const text of texts) text.style.display = "none";
  }
}

function mount({ model, el }) {
  count += 1;
  const root = document.createElement("div");
  root.className = "saol";
  root.addEventListener("focusin", keepKeys);
  root.classList.toggle("in-lab", inLab());
  el.append(root);

  const gate = makeGate((ask, number) => model.send({ ask, number }), model.get("answered"));
  const answered = () => gate.answered(model.get("answered"));
  const saved = (content, buffers) => download(content.name, buffers[0]);
  const follow = (address) => {
    const text = linked(address);
    if (text !== null) model.send({ name: "The link's state", text });
  };
  const hash = () => follow(location.hash);
  model.on("change:answered", answered);
  model.on("msg:custom", saved);
  window.addEventListener("hashchange", hash);

  render(html`<${Explorer} model=${model} gate=${gate} id=${`saol${count}`} />`, root);
  hideStill(!inLab());
  follow(location.hash || performance.getEntriesByType("navigation")[0]?.name); // Lab takes the hash away meanwhile

  return () => {
    model.off("change:answered", answered);
    model.off("msg:custom", saved);
    window.removeEventListener("hashchange", hash);
    render(null, root);
  };
}

export default { render: mount };
