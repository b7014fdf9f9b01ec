// What both layers say, the true shares, and how SAOL's answer adds up from its places.

import { stack } from "./maps.js";
import { Radio } from "./parts.js";
import { html } from "./vendor/preact-htm.js";
import { className, patchSentence, percent, pieceSentence, ranked, trueShares } from "./words.js";

export function Answers({ page }) {
  const { setup, shown, state } = page;
  const { numbers } = shown;
  const longest = Math.max(...setup.classes.map((label) => label.length));
  const width = Math.min(Math.max(longest, 4), 14) * 0.62;
  return html`<section class="answers" aria-label="What both output layers say">
    <h3>What both output layers say</h3>
    <p class="legend">
      ${numbers.saol && html`<span><i class="key first"></i>SAOL</span>`}
      ${numbers.gap && html`<span><i class="key second"></i>GAP-FC, the usual one</span>`}
      <span><i class="key third"></i>true share of the area</span>
      ${numbers.saol && numbers.gap && html`<span class="figures">SAOL | GAP-FC</span>`}
    </p>
    <div
      class="rows saol-rows"
      role="radiogroup"
      aria-label="Class that the maps are for"
      style=${{ "--w": `${width}em` }}
    >
      ${ranked(numbers).map((k) => html`<${Row} key=${k} k=${k} page=${page} />`)}
    </div>
    <label class="check">
      <input
        type="checkbox"
        checked=${state.k === null}
        onChange=${(event) => page.choose({ k: event.target.checked ? null : numbers.k })}
      />
      maps of the strongest class (or click a row)
    </label>
    <p class="saol-patch-told">${patchSentence(state.box, setup.size, numbers.held)}</p>
    <p class="saol-true-told">
      True shares, by area alone as CutMix counts them: ${trueShares(numbers, setup.classes)}.
    </p>
  </section>`;
}

function Row({ k, page }) {
  const { setup, shown } = page;
  const { saol, gap, true: truth, k: chosen } = shown.numbers;
  const name = className(setup.classes, k);
  const layers = [
    ["SAOL", saol],
    ["GAP-FC", gap],
  ].filter(([, shares]) => shares);
  const told = layers.map(([layer, shares]) => `${layer} ${percent(shares[k])}`);
  const spoken = [name, ...told, `true share ${percent(truth[k])}`].join(", ");
  return html`<${Radio}
    group="row"
    name=${`${page.id}-class`}
    value=${k}
    checked=${k === chosen}
    label=${spoken}
    pick=${() => page.choose({ k })}
  >
    <span class="name">${name}</span>
    <span class="bars">
      ${layers.map(([layer, shares]) => html`<i key=${layer} class=${layer} style=${{ width: `${100 * shares[k]}%` }}></i>`)}
      ${truth[k] > 0 && html`<b style=${{ left: `${100 * truth[k]}%` }}></b>`}
    </span>
    <span class="figures">${layers.map(([, shares]) => percent(shares[k])).join(" | ")}</span>
  <//>`;
}

// The stacked bar: every place adds A times Y; the chosen one is marked and told.
export function Sum({ page }) {
  const { cells, setup, shown } = page;
  if (!cells) return null;
  const k = shown.numbers.k;
  const name = className(setup.classes, k);
  const chosen = page.cell;
  const answer = shown.numbers.saol[k];
  return html`<section class="sum saol-sum" aria-label="How SAOL's answer adds up">
    <h3>Together: every place adds A × Y to “${name}”</h3>
    <div class="stack" aria-hidden="true">
      ${stack(cells, chosen).map(
        ({ cell, share }) =>
          html`<i
            key=${cell}
            class=${cell === chosen && cell !== null ? "chosen" : ""}
            style=${{ width: `${100 * share}%` }}
            onClick=${() => cell !== null && page.setCell(cell)}
          ></i>`,
      )}
    </div>
    <p class="saol-total">All places add up to SAOL's answer: ${percent(answer)}.</p>
    <p class="saol-piece">${pieceSentence(cells, chosen)}</p>
  </section>`;
}
