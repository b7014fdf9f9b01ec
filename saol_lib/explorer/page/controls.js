// Choosing pictures and scenes, setting the patch and the overlay, saving.

import { edged, fitting } from "./geometry.js";
import { FileButton, Png, Radio, Select, Slider, download } from "./parts.js";
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { boxSentence, className, percent } from "./words.js";

export function Head({ page }) {
  const names = Object.keys(page.setups);
  const models = Object.fromEntries(names.map((name) => [name, name]));
  return html`<div class="head">
    ${
      names.length > 1 &&
      html`<${Select}
        id=${page.id}
        name="model"
        label="Model and pictures"
        value=${page.state.model}
        options=${models}
        pick=${(model) => page.start({ model })}
      />`
    }
    <${Scenes} page=${page} />
  </div>`;
}

function Scenes({ page }) {
  const { scenes } = page.setup;
  if (!scenes.length) return null;
  const same = (scene) =>
    ["base", "source", "box", "shift"].every((key) => String(scene.state[key]) === String(page.state[key]));
  const current = scenes.find(same);
  return html`<div class="scenes" role="group" aria-label="Scenes to begin with">
    <span>Begin with</span>
    ${scenes.map(
      (scene) =>
        html`<button
          key=${scene.title}
          class=${`saol-scene ${scene === current ? "on" : ""}`}
          aria-pressed=${scene === current ? "true" : "false"}
          onClick=${() => page.start({ ...scene.state, model: page.state.model })}
        >
          ${scene.title}
        </button>`,
    )}
    <p class="saol-caption">${current ? current.caption : "Your own: choose pictures and drag the patch."}</p>
  </div>`;
}

export function Picker({ page, slot, title }) {
  const { setup, state, shown } = page;
  const own = typeof state[slot] === "string";
  const label = className(setup.classes, shown.pictures[slot].label);
  const random = () => page.choose({ [slot]: Math.floor(Math.random() * setup.count) });
  const upload = async (file) => page.send({ slot, name: file.name }, [await file.arrayBuffer()]);
  return html`<section class=${`slot saol-${slot}`} aria-label=${title}>
    <h3>${title}</h3>
    <${Png} class="chosen" bytes=${shown.pictures[slot].png} />
    <div class="buttons">
      <small>${own ? "your picture, class unknown" : label}</small>
      <button aria-label=${`Random: ${title}`} onClick=${random}>Random</button>
      <${FileButton}
        label=${`Upload: ${title}`}
        text="Upload …"
        accept="image/*"
        limit=${setup.limit}
        tell=${page.tell}
        take=${upload}
      />
    </div>
    <div class="thumbs" role="radiogroup" aria-label=${`${title}: choose`} tabindex="0">
      ${setup.thumbs.map(
        (bytes, i) =>
          html`<${Radio}
            key=${i}
            group="thumb"
            name=${`${page.id}-${slot}`}
            value=${i}
            checked=${state[slot] === i}
            label=${`${title}: number ${i + 1}, ${className(setup.classes, setup.labels[i])}`}
            title=${className(setup.classes, setup.labels[i])}
            pick=${() => page.choose({ [slot]: i })}
          >
            <${Png} bytes=${bytes} />
          <//>`,
      )}
    </div>
  </section>`;
}

const MOVES = { both: "the patch with what it shows", window: "only its frame", picture: "only what it shows" };

export function PatchControls({ page }) {
  const { setup, state } = page;
  const [x0, y0, x1, y1] = state.box;
  const set = (axis, far) => (value) => {
    const box = edged(state.box, axis, far, value, setup.size);
    page.choose({ box, shift: fitting(state.shift, box, setup.size) });
  };
  const [height, width] = setup.size;
  const edges = [
    ["x", x0, width, set(0, false)],
    ["y", y0, height, set(1, false)],
    ["width", x1 - x0, width, set(0, true)],
    ["height", y1 - y0, height, set(1, true)],
  ];
  return html`<section class="patching" aria-label="Patch">
    <div class="moves" role="radiogroup" aria-label="Dragging the patch moves">
      <span>Dragging moves</span>
      ${Object.entries(MOVES).map(
        ([key, text]) =>
          html`<${Radio}
            key=${key}
            group="move"
            name=${`${page.id}-moves`}
            value=${key}
            checked=${page.moves === key}
            label=${text}
            pick=${page.setMoves}
          >
            ${text}
          <//>`,
      )}
    </div>
    ${
      (x0 === x1 || y0 === y1) &&
      html`<button class="saol-paste" onClick=${() => page.choose({ box: null, shift: [0, 0] })}>Paste a patch</button>`
    }
    <div class="edges">
      ${edges.map(
        ([name, value, most, put]) =>
          html`<${Slider}
            key=${name}
            id=${page.id}
            name=${`box-${name}`}
            label=${name}
            value=${value}
            say=${String}
            set=${put}
            min="0"
            max=${most}
            step="1"
          />`,
      )}
    </div>
  </section>`;
}

export function OverlayControls({ page }) {
  const { state, shown } = page;
  const { box, held } = shown.numbers;
  return html`<section class="overlaying" aria-label="Map and box">
    <h3>Map and box</h3>
    <${Slider}
      id=${page.id}
      name="opacity"
      label="Opacity"
      value=${state.opacity}
      say=${percent}
      set=${(opacity) => page.choose({ opacity })}
      min="0"
      max="1"
      step="0.05"
    />
    <${Slider}
      id=${page.id}
      name="threshold"
      label="Threshold"
      value=${state.threshold}
      say=${(value) => value.toFixed(2)}
      set=${(threshold) => page.choose({ threshold })}
      min="0"
      max="0.95"
      step="0.01"
    />
    <p class="saol-iou">
      ${box && html`<span class="key found-key"></span>`} ${boxSentence(shown.numbers, state.overlay)}
    </p>
    ${held !== null && page.cells && html`<${WhySmall} page=${page} />`}
    <div class="selects">
      <${Select}
        id=${page.id}
        name="scale"
        label="Brightest colour"
        value=${state.scale}
        options=${{ own: "each map's maximum", shared: "one value for all classes" }}
        pick=${(scale) => page.choose({ scale })}
      />
      <${Select}
        id=${page.id}
        name="colours"
        label="Colours"
        value=${state.colours}
        options=${{ viridis: "viridis", cividis: "cividis" }}
        pick=${(colours) => page.choose({ colours })}
      />
    </div>
  </section>`;
}

function WhySmall({ page }) {
  const { attention } = page.cells;
  const most = Math.max(...attention);
  const isPoint = most > 0.3;
  const point =
    "One place is enough to tell the class, and training asks for no more; so the map is a point, not an outline, and " +
    "its box holds a part of the object only. Y, what each place says, covers more.";
  const spread = "The map has no outline to follow: its box surrounds whatever is bright enough, object or not.";
  return html`<details class="why">
    <summary>Why are boxes of A and A·Y so ${isPoint ? "small" : "vague"}?</summary>
    <p>
      Here ${percent(most)} of the attention lies on the strongest of ${attention.length} places.
      ${isPoint ? point : spread}
    </p>
  </details>`;
}

export function Foot({ page }) {
  const { setup, state } = page;
  const [note, setNote] = useState(""); // beside the button: the page's top may be out of sight
  useEffect(() => setNote(""), [state]);
  const text = () => JSON.stringify(state);
  const link = async () => {
    const url = linkTo(text());
    try {
      await navigator.clipboard.writeText(url);
      setNote("The link to this state is copied.");
    } catch {
      setNote(url);
    }
  };
  return html`<div class="foot" role="group" aria-label="Save and load">
    <span>Save</span>
    <button class="saol-svg" onClick=${() => page.send({ figure: "svg" })}>SVG</button>
    <button class="saol-png" onClick=${() => page.send({ figure: "png" })}>PNG</button>
    <button class="saol-json" onClick=${() => download("saol-state.json", text())}>State</button>
    <${FileButton}
      label="Load a state"
      text="Load state …"
      accept=".json,application/json"
      limit=${setup.limit}
      tell=${page.tell}
      take=${async (file) => page.send({ name: file.name, text: await file.text() })}
    />
    <button class="saol-link" onClick=${link}>Copy link</button>
    <span class="saol-note" role="status">${note}</span>
  </div>`;
}

function linkTo(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  const safe = btoa(bytes).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
  return `${location.origin}${location.pathname}#saol=${safe}`;
}

// The state's text in an address that linkTo made; null where there is none.
export function linked(address) {
  const found = /#saol=([\w-]+)/.exec(address ?? "");
  if (!found) return null;
  try {
    const bytes = atob(found[1].replace(/-/g, "+").replace(/_/g, "/"));
    return new TextDecoder().decode(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)));
  } catch {
    return ""; // a link that was cut: Python says so
  }
}
