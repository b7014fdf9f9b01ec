// The first minute: four steps that one walks through or skips.

import { html } from "./vendor/preact-htm.js";
import { answers, className, percent } from "./words.js";

export const EMPTY = [0, 0, 0, 0];

// Each step: its title, the overlay that it needs, and what it says of what is shown.
export const STEPS = [
  {
    title: "A whole picture, two answers",
    overlay: "none",
    say: ({ shown, setup }) =>
      `Two output layers sit on one network and read the same features. Here ${answers(shown.numbers, setup.classes)}. ` +
      "GAP-FC, the usual one, first averages the whole picture and then decides. SAOL decides at every place, and then weighs the places.",
  },
  {
    title: "A: where it looks",
    overlay: "attention",
    say: ({ cells, shown }) =>
      `SAOL spreads 100 % of attention over ${cells.attention.length} places. The brighter, the more: ` +
      `${percent(Math.max(...cells.attention))} lie on a single one. ` +
      `The orange box surrounds the bright places${shown.numbers.truth ? ", the dashed one the object" : ""}.`,
  },
  {
    title: "Y: what each place says",
    overlay: "spatial",
    say: ({ shown, setup }) =>
      `Every place gives its own answer. Bright places vote for “${className(setup.classes, shown.numbers.k)}”. ` +
      "Click one: the bar “Together” marks what it adds, A times Y.",
  },
  {
    title: "Together: the sum",
    overlay: "saol",
    say: ({ shown, setup }) => {
      const { k, saol } = shown.numbers;
      return (
        `All places' A times Y add up to ${percent(saol[k])} for “${className(setup.classes, k)}”: that is SAOL's answer. ` +
        "Nothing else goes into it. Next, a patch of another picture is pasted."
      );
    },
  },
];

// What is shown in a step; after the last, the patch is pasted.
export function stepState(step, opening) {
  if (step < STEPS.length) return { ...opening, box: EMPTY, shift: [0, 0], k: null, overlay: STEPS[step].overlay };
  return { ...opening, k: null, overlay: "attention" };
}

export function Tour({ page }) {
  const { tour } = page;
  if (!page.cells || tour === "away") return null;
  if (tour === "offered") return html`<${Invitation} page=${page} />`;
  if (tour >= STEPS.length) return html`<${Ending} page=${page} />`;

  const { title, say } = STEPS[tour];
  return html`<section class="tour" aria-label="Walk through">
    <h2>${tour + 1} of ${STEPS.length} · ${title}</h2>
    <p class="saol-step">${say(page)}</p>
    <div class="tour-buttons">
      ${tour > 0 && html`<button class="saol-back" onClick=${() => page.walk(tour - 1)}>Back</button>`}
      <button class="saol-next strong" onClick=${() => page.walk(tour + 1)}>
        ${tour === STEPS.length - 1 ? "Paste the patch" : "Next"}
      </button>
      <button class="saol-skip" onClick=${page.leave}>Skip</button>
    </div>
  </section>`;
}

function Invitation({ page }) {
  const text =
    "Part of a second picture is pasted over this one. The colour shows where the network looks: drag the patch and watch.";
  return html`<section class="tour" aria-label="Walk through">
    <p>${text}</p>
    <div class="tour-buttons">
      <button class="saol-walk strong" onClick=${() => page.walk(0)}>New here? Four steps, one minute</button>
      <button class="saol-skip" onClick=${page.leave}>Skip</button>
    </div>
  </section>`;
}

function Ending({ page }) {
  const text =
    "Part of a second picture is pasted in. Drag it, or pull its corners: where does the network look now, and what do " +
    `both layers say? ${answers(page.shown.numbers, page.setup.classes)}.`;
  return html`<section class="tour" aria-label="Walk through">
    <h2>Now you: drag the patch</h2>
    <p class="saol-step">${text}</p>
    <div class="tour-buttons">
      <button class="saol-back" onClick=${() => page.walk(STEPS.length - 1)}>Back</button>
      <button class="saol-skip strong" onClick=${page.leave}>Done</button>
    </div>
  </section>`;
}
