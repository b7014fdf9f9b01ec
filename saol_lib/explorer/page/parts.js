// Small parts that the others are made of.

import { coloured } from "./maps.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact-htm.js";

// What Python says now; a new object whenever anything changed.
export function useTraits(model, names) {
  const read = () => Object.fromEntries(names.map((name) => [name, model.get(name)]));
  const [traits, setTraits] = useState(read);
  useEffect(() => {
    const changed = () => setTraits(read());
    model.on("change", changed);
    changed();
    return () => model.off("change", changed);
  }, [model]);
  return traits;
}

// A picture file's bytes as an image; the same bytes are not decoded twice.
export function Png({ bytes, ...rest }) {
  const [url, setUrl] = useState("");
  useLayoutEffect(() => {
    const made = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    setUrl(made);
    return () => setTimeout(() => URL.revokeObjectURL(made), 1000);
  }, [bytes]);
  return html`<img alt="" draggable=${false} src=${url} ...${rest} />`;
}

// A map as a canvas: painted in the frame in which it arrives, so nothing is ever blank.
export function PixelMap({ map, palette, fading = false, ...rest }) {
  const canvas = useRef(null);
  const [height, width] = map.shape;
  useLayoutEffect(() => {
    const pixels = coloured(map.values, palette, fading);
    const context = canvas.current.getContext("2d");
    context.putImageData(new ImageData(pixels, width, height), 0, 0);
  }, [map, palette, fading]);
  return html`<canvas ref=${canvas} width=${width} height=${height} ...${rest}></canvas>`;
}

export function Radio({ group, value, label, checked, pick, children, ...rest }) {
  return html`<label class=${`${group} ${checked ? "on" : ""}`} ...${rest}>
    <input
      type="radio"
      class="hidden"
      name=${rest.name ?? group}
      value=${value}
      checked=${checked}
      aria-label=${label}
      onChange=${() => pick(value)}
    />
    ${children}
  </label>`;
}

export function Slider({ id, name, label, value, say, set, ...range }) {
  return html`<div class="slider">
    <label for=${`${id}-${name}`}>${label}</label>
    <input
      id=${`${id}-${name}`}
      class=${`saol-${name}`}
      type="range"
      value=${value}
      onInput=${(event) => set(Number(event.target.value))}
      ...${range}
    />
    <output for=${`${id}-${name}`}>${say(value)}</output>
  </div>`;
}

export function Select({ id, name, label, value, options, pick }) {
  return html`<span class="select">
    <label for=${`${id}-${name}`}>${label}</label>
    <select id=${`${id}-${name}`} class=${`saol-${name}`} onChange=${(event) => pick(event.target.value)}>
      ${Object.entries(options).map(
        ([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`,
      )}
    </select>
  </span>`;
}

// A button that opens a file and hands it on, unless it is too large.
export function FileButton({ label, text, accept, limit, tell, take }) {
  const chosen = async (event) => {
    const [file] = event.target.files;
    if (file && file.size > limit) {
      tell(`${file.name} is too large: at most ${limit / 1e6} MB are read; make it smaller first`);
    } else if (file) {
      await take(file);
    }
    event.target.value = "";
  };
  return html`<label class="file">
    ${text}
    <input type="file" class="hidden" accept=${accept} aria-label=${label} onChange=${chosen} />
  </label>`;
}

// A text for screen readers, spoken once things have come to rest.
export function LiveRegion({ text }) {
  const [spoken, setSpoken] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => setSpoken(text), 600);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<div class="hidden saol-live" role="status" aria-live="polite">${spoken}</div>`;
}

export function download(name, data) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
