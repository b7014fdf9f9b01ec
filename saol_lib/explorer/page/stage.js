// The picture with its patch, the overlay, and the boxes; and the tiles to choose the overlay by.

import { cut, dragged, placed, sameBox } from "./geometry.js";
import { cellAt, cellBox, peak, ramp, stepCell } from "./maps.js";
import { PixelMap, Png, Radio } from "./parts.js";
import { html, useRef, useState } from "./vendor/preact-htm.js";
import { OVERLAYS, className, placeSentence, rounded, where } from "./words.js";

const CORNERS = { nw: [0, 0], ne: [100, 0], sw: [0, 100], se: [100, 100] };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function Stage({ page }) {
  const { setup, state, shown, cells } = page;
  const [over, setOver] = useState(null);
  const root = useRef(null);

  const locate = (event) => {
    const frame = root.current.getBoundingClientRect();
    return cellAt(cells, (event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height);
  };
  const pick = (event) => {
    if (cells) page.setCell(locate(event));
  };
  const hover = (event) => {
    if (!cells || event.pointerType !== "mouse") return;
    setOver(event.buttons ? null : locate(event)); // while something is dragged, no place is meant
  };
  const looked = over ?? page.cell ?? (cells && peak(cells.attention));

  return html`<div class="scene">
    <div
      class="stage saol-stage"
      ref=${root}
      onClick=${pick}
      onPointerMove=${hover}
      onPointerLeave=${() => setOver(null)}
    >
      <${Png} class="below" bytes=${shown.pictures.base.png} />
      <${Png} class="pasted" bytes=${shown.pictures.source.png} style=${cut(state.box, state.shift, setup.size)} />
      ${
        shown.overlay.shape &&
        state.overlay !== "none" &&
        html`<${PixelMap}
          class="cover saol-overlay"
          map=${shown.overlay}
          palette=${setup.palettes[state.colours]}
          fading=${true}
          style=${{ opacity: state.opacity }}
        />`
      }
      <${Boxes} page=${page} />
      <${Patch} page=${page} root=${root} pick=${pick} />
      ${
        page.cell !== null &&
        page.cell !== looked &&
        html`<div
          class="frame cell marked saol-kept"
          aria-hidden="true"
          style=${placed(cellBox(cells, page.cell, setup.size), setup.size)}
        ></div>`
      }
      ${cells && html`<${Cell} page=${page} i=${looked} marked=${over !== null || page.cell !== null} />`}
    </div>
    <${Legend} page=${page} />
    ${
      cells &&
      html`<p class="saol-hover">
        ${placeSentence(cells, looked, setup.classes, over !== null || page.cell !== null)}
      </p>`
    }
  </div>`;
}

function Boxes({ page }) {
  const { numbers } = page.shown;
  const size = page.setup.size;
  const grown = (box) => [box[0], box[1], box[2] + 1, box[3] + 1];
  return html`
    ${numbers.truth && html`<div class="frame truth saol-truth" style=${placed(grown(numbers.truth), size)}></div>`}
    ${numbers.box && html`<div class="frame found saol-found" style=${placed(grown(numbers.box), size)}></div>`}
  `;
}

function Patch({ page, root, pick }) {
  const { setup, state } = page;
  const drag = useRef(null);
  const [x0, y0, x1, y1] = state.box;

  const down = (event) => {
    const corner = event.target.dataset.corner;
    drag.current = { x: event.clientX, y: event.clientY, from: state, what: corner ?? page.moves, far: false };
    event.currentTarget.setPointerCapture(event.pointerId);
  };
  const move = (event) => {
    if (!drag.current) return;
    const { x, y, from, what } = drag.current;
    const frame = root.current.getBoundingClientRect();
    const right = Math.round(((event.clientX - x) * setup.size[1]) / frame.width);
    const below = Math.round(((event.clientY - y) * setup.size[0]) / frame.height);
    const changed = dragged(from, what, right, below, setup.size);
    if (sameBox(changed, state)) return;
    drag.current.far = true;
    page.choose(changed);
  };
  const up = () => {
    if (drag.current) drag.current = { ...drag.current, ended: true };
  };
  const click = (event) => {
    event.stopPropagation(); // a drag's end is no choice of a cell
    if (drag.current && !drag.current.far) pick(event);
    drag.current = null;
  };
  const cancel = () => {
    if (drag.current) page.choose({ box: drag.current.from.box, shift: drag.current.from.shift });
    drag.current = null;
  };
  const key = (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const what = event.shiftKey ? "se" : page.moves;
    page.choose(dragged(state, what, ...step, setup.size));
  };

  const label =
    `Patch at ${x0}, ${y0}, ${x1 - x0} wide, ${y1 - y0} high. ` + "Arrow keys move it, with Shift they resize it.";
  return html`<div
    class=${`frame patch saol-patch ${x1 > x0 && y1 > y0 ? "" : "empty"}`}
    style=${placed(state.box, setup.size)}
    tabindex="0"
    role="group"
    aria-roledescription="movable patch"
    aria-label=${label}
    onPointerDown=${down}
    onPointerMove=${(event) => drag.current && !drag.current.ended && move(event)}
    onPointerUp=${up}
    onPointerCancel=${cancel}
    onClick=${click}
    onKeyDown=${key}
  >
    ${Object.entries(CORNERS).map(
      ([corner, [left, top]]) =>
        html`<span
          key=${corner}
          class=${`handle saol-${corner}`}
          data-corner=${corner}
          style=${{ left: `${left}%`, top: `${top}%` }}
        ></span>`,
    )}
  </div>`;
}

function Cell({ page, i, marked }) {
  const { setup, cells } = page;
  const key = (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    page.setCell(stepCell(cells, i, ...step));
  };
  return html`<div
    class=${`frame cell saol-cell ${marked ? "marked" : ""}`}
    style=${placed(cellBox(cells, i, setup.size), setup.size)}
    tabindex="0"
    role="group"
    aria-roledescription="place of the map"
    aria-label=${`Place in ${where(cells, i)}. Arrow keys choose another.`}
    onKeyDown=${key}
  ></div>`;
}

function Legend({ page }) {
  const { state, shown, setup } = page;
  const limits = shown.tiles[state.overlay]?.limits;
  const { hint } = OVERLAYS[state.overlay];
  if (!limits) return html`<div class="bar"><small>${hint}</small></div>`;
  return html`<div class="bar">
    <small class="saol-hint">${hint}</small>
    <div class="scale">
      <small class="saol-low">${rounded(limits[0], limits[1])}</small>
      <div class="ramp" style=${{ background: ramp(setup.palettes[state.colours]) }}></div>
      <small>${rounded(limits[1], limits[1])}</small>
    </div>
  </div>`;
}

export function Tiles({ page }) {
  const { setup, state, shown } = page;
  const name = className(setup.classes, shown.numbers.k);
  const palette = setup.palettes[state.colours];
  const count = setup.overlays.length;
  const columns = { "--all": count, "--half": count > 4 ? Math.ceil(count / 2) : count };
  return html`<div class="strip">
    <div class="tiles" role="radiogroup" aria-label="What lies over the picture" style=${columns}>
      ${setup.overlays.map((key) => {
        const { symbol, name: words, hint } = OVERLAYS[key];
        const subject = key === "spatial" || key === "saol" ? `${symbol} for “${name}”` : symbol;
        return html`<${Radio}
          key=${key}
          group="tile"
          name=${`${page.id}-overlay`}
          value=${key}
          checked=${state.overlay === key}
          label=${`${words}${subject && `, ${subject}`}: ${hint}`}
          title=${hint}
          pick=${(overlay) => page.choose({ overlay })}
        >
          ${
            key === "none"
              ? html`<span class="blank"></span>`
              : html`<${PixelMap} map=${shown.tiles[key]} palette=${palette} />`
          }
          <b>${words}</b><small>${subject}</small>
        <//>`;
      })}
    </div>
  </div>`;
}
