// The page of the attention explorer. Python's `State` is the trait `choices`; this file draws what `Lens.view` sends and
// sends back what the user moves. During a drag the patch follows the pointer here; Python hears of it once, on the drop.

const CSS = `
.saol { --n: 384px; --saol: #0072b2; --gap: #8a8a8a; --found: #d55e00; --ink: var(--jp-ui-font-color1, #111); --faint: var(--jp-border-color1, #999);
  container-type: inline-size; padding: 2px; font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--ink); }
.saol * { box-sizing: border-box; }
.saol img { display: block; image-rendering: pixelated; max-width: none; margin: 0; }
.saol h3 { font-size: 13px; font-weight: 600; margin: 0 0 4px; color: inherit; }
.saol small { color: var(--jp-ui-font-color2, #555); font-size: 12px; }
.saol output, .saol .row span:last-child { font-variant-numeric: tabular-nums; }
.saol button, .saol select, .saol .file { font: inherit; color: inherit; background: var(--jp-layout-color1, #fff); padding: 2px 8px;
  border: 1px solid var(--faint); border-radius: 4px; cursor: pointer; display: inline-block; }
.saol button:hover, .saol .file:hover { background: var(--jp-layout-color2, #eee); }
.saol :focus-visible, .saol .file:focus-within, .saol label:has(input[type=radio]:focus-visible) { outline: 3px solid #56b4e9; outline-offset: 1px; }
.saol .hidden { position: absolute; opacity: 0; width: 1px; height: 1px; pointer-events: none; }
.saol .head { display: flex; gap: 10px; align-items: center; min-height: 26px; margin-bottom: 8px; }
.saol .head label { white-space: nowrap; }
.saol .message.told { font-weight: 600; border-left: 4px solid var(--found); padding-left: 8px; }
.saol .grid { display: grid; gap: 8px 22px; grid-template: "left stage right" auto "foot foot foot" auto / 198px var(--n) minmax(270px, 400px); }
.saol .left { grid-area: left; display: grid; gap: 10px; align-content: start; }
.saol .middle { grid-area: stage; }
.saol .right { grid-area: right; display: grid; gap: 8px; align-content: start; min-width: 0; }
.saol .foot { grid-area: foot; display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; border-top: 1px solid var(--faint); padding-top: 8px; }
@container (min-width: 1110px) { .saol .grid { --n: 460px; --t: 52px; --thumbs: 168px; } }
@container (max-width: 930px) { .saol .grid { --n: 340px; --t: 36px; --tile: 11px; gap: 10px 14px;
  grid-template: "stage right" auto "left left" auto "foot foot" auto / var(--n) minmax(230px, 1fr); } .saol .left { grid-template-columns: 1fr 1fr; }
  .saol .saol-hover { min-height: 37px; } .saol .saol-hover, .saol .saol-sum { white-space: normal !important; } }
@container (max-width: 590px) { .saol .grid { --n: 288px; --t: 28px; --tile: 10px; grid-template: "stage" auto "right" auto "left" auto "foot" auto / minmax(0, 1fr); } }
.saol .slot { display: grid; grid-template-columns: 68px 1fr; gap: 2px 10px; align-items: center; }
.saol .slot > h3, .saol .thumbs { grid-column: 1 / 3; }
.saol .slot > img { width: 68px; height: 68px; border-radius: 4px; }
.saol .buttons { display: grid; gap: 3px; justify-items: start; }
.saol .thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(30px, 1fr)); gap: 3px; max-height: var(--thumbs, 130px); overflow-y: auto; padding: 3px; }
.saol .thumbs label, .saol .tile { position: relative; cursor: pointer; border-radius: 4px; }
.saol .thumbs img { width: 100%; aspect-ratio: 1; border-radius: 3px; }
.saol label.on { box-shadow: 0 0 0 3px var(--saol); }
.saol .stage { position: relative; width: var(--n); height: var(--n); touch-action: none; user-select: none; background: #000; }
.saol .stage > * { position: absolute; }
.saol .stage > img { inset: 0; width: 100%; height: 100%; pointer-events: none; }
.saol .cover { image-rendering: auto !important; }
.saol .frame { pointer-events: none; border: 2px solid #fff; box-shadow: 0 0 0 1px #000, inset 0 0 0 1px #000; }
.saol .found { border: 3px solid var(--found); box-shadow: 0 0 0 1px #fff, inset 0 0 0 1px #fff; }
.saol .truth { border-style: dashed; box-shadow: none; outline: 1px dashed #000; }
.saol .patch { pointer-events: auto; cursor: move; }
.saol .handle { position: absolute; width: 16px; height: 16px; background: #fff; border: 2px solid #000; border-radius: 50%; transform: translate(-50%, -50%); }
.saol .saol-nw, .saol .saol-se { cursor: nwse-resize; } .saol .saol-ne, .saol .saol-sw { cursor: nesw-resize; }
.saol .dragging .cover, .saol .dragging .found, .saol .dragging .truth { opacity: 0 !important; }
.saol .bar { display: flex; gap: 8px; align-items: center; margin: 6px 0 2px; }
.saol .ramp { flex: 1; height: 10px; border-radius: 2px; }
.saol .saol-hover, .saol .saol-sum { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: var(--n); }
.saol .tiles { display: flex; gap: 1px; align-items: center; padding: 4px 0 2px; justify-content: space-between; }
.saol .tile { display: grid; justify-items: center; gap: 1px; padding: 2px; font-size: var(--tile, 12px); white-space: nowrap; }
.saol .tile img, .saol .blank { width: var(--t, 42px); height: var(--t, 42px); border-radius: 3px; } .saol .blank { border: 1px dashed var(--faint); }
.saol .rows { display: grid; gap: 1px; }
.saol .row { position: relative; display: grid; grid-template-columns: var(--w) 1fr 84px; gap: 8px; align-items: center; padding: 1px 6px;
  border-radius: 4px; cursor: pointer; }
.saol .row.on { background: color-mix(in srgb, var(--saol) 16%, transparent); box-shadow: inset 3px 0 0 var(--saol); font-weight: 600; }
.saol .row span:first-of-type { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.saol .row span:last-child { text-align: right; font-size: 12px; }
.saol .bars { position: relative; display: grid; gap: 2px; padding: 3px 0; }
.saol .bars i { height: 7px; min-width: 1px; border-radius: 1px; background: var(--saol); } .saol .bars i + i { background: var(--gap); }
.saol .bars b { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1px; background: var(--ink); }
.saol .key { display: inline-block; width: 12px; height: 8px; border-radius: 1px; margin: 0 4px 0 8px; }
.saol .slider { display: grid; grid-template-columns: 68px 1fr 42px; gap: 8px; align-items: center; }
.saol .slider input { width: 100%; margin: 0; accent-color: var(--saol); } .saol .foot .slider { grid-template-columns: auto 64px 16px; gap: 5px; }
.saol .ends { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin-left: auto; }
`;
const RAMPS = { viridis: "#440154, #3b528b, #21918c, #5ec962, #fde725", cividis: "#00224e, #434e6c, #7d7c78, #bcaf6f, #fee838" };
const LABELS = { none: "None", attention: "A", spatial: "Y(k)", saol: "A·Y(k)", mask: "Mask", cam: "CAM", grad_cam: "Grad-CAM" };
const HINTS = { none: "the mixed picture alone", attention: "attention: where SAOL looks", spatial: "spatial vote: what each position says",
  saol: "attention times vote: it adds up to SAOL's answer", mask: "where SAOL sees a pasted patch", cam: "class activation map of GAP-FC",
  grad_cam: "Grad-CAM of GAP-FC" };
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const SIGNS = { attention: "×", spatial: "=" };
const INTRO = "Drag the patch, or pull its corners: where does SAOL look (A), what does every position say (Y), what do both add up to?";
const percent = (value) => (100 * value).toFixed(value && value < 0.0995 ? 1 : 0) + " %";
let count = 0;

function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key in node && key !== "role") node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== ""));
  node.dataset.lmSuppressShortcuts = "true";  // else JupyterLab takes keys for its own: B adds a cell, D D deletes one
  return node;
}

const urls = new Map();
function show(img, data) {  // a PNG that did not change is not decoded again
  const last = urls.get(img);
  if (last && last.data === data) return;
  if (last) URL.revokeObjectURL(last.url);
  const url = data.byteLength ? URL.createObjectURL(new Blob([data], { type: "image/png" })) : "";
  urls.set(img, { data, url });
  if (url) img.src = url; else img.removeAttribute("src");
}

function save(name, data) {
  const link = h("a", { href: URL.createObjectURL(new Blob([data])), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function render({ model, el }) {
  const id = `saol${count++}`, root = h("div", { className: "saol" });
  el.append(h("style", { textContent: CSS }), root);
  let paint = () => {}, built = null;
  const get = (name) => model.get(name);
  const choose = (change) => { model.set("choices", { ...get("choices"), ...change }); model.save_changes(); };
  const update = () => {
    if (!get("choices").box) return;  // another model was asked for and has not answered
    if (built !== get("choices").model) { built = get("choices").model; paint = build(model, root, id, choose); }
    paint();
  };
  model.on("change", update);
  model.on("msg:custom", (content, buffers) => save(content.name, buffers[0]));
  update();
  for (const still of document.querySelectorAll('img[alt^="Still picture"]')) still.style.display = "none";
  const follow = (address) => {
    const linked = /#saol=([\w-]+)/.exec(address);
    if (!linked) return;
    let text = "";
    try {
      const bytes = Uint8Array.from(atob(linked[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
      text = new TextDecoder().decode(bytes);
    } catch { /* a link that was cut: Python says so */ }
    model.send({ name: "The link's state", text });
  };
  window.addEventListener("hashchange", () => follow(location.hash));
  follow(location.hash || performance.getEntriesByType("navigation")[0]?.name);  // Lab takes the hash away meanwhile
}

function build(model, root, id, choose) {
  const setup = model.get("setup")[model.get("choices").model], [height, width] = setup.size;
  const name = (k) => (k < 0 ? "no known class" : setup.classes[k]);
  const message = h("div", { className: "message saol-message", role: "status" });
  const tell = (text) => { message.textContent = text || INTRO; message.classList.toggle("told", Boolean(text)); };
  const parts = [stage(), tiles(), picker("base", "Picture"), picker("source", "Patch from"), verdict(), sliders(), foot()];
  const [scene, strip, base, source, bars, tune, ends] = parts.map((part) => part.node);
  root.replaceChildren(
    h("div", { className: "head" }, ...models(), message),
    h("div", { className: "grid" }, h("div", { className: "left" }, base, source), h("div", { className: "middle" }, scene, strip),
      h("div", { className: "right" }, bars, tune), ends));
  return () => { tell(model.get("message")); for (const part of parts) part.paint(model.get("choices"), model.get("numbers")); };

  function models() {
    const names = Object.keys(model.get("setup"));
    if (names.length < 2) return [];
    const list = h("select", { id: `${id}-model`, onchange: () => { model.set("choices", { model: list.value }); model.save_changes(); } },
      ...names.map((value) => h("option", { value, textContent: value, selected: value === model.get("choices").model })));
    return [h("label", { htmlFor: list.id, textContent: "Model and pictures" }), list];
  }

  function radio(group, value, label, inner, pick) {
    const input = h("input", { type: "radio", className: "hidden", name: `${id}-${group}`, value, onchange: pick, "aria-label": label });
    return h("label", { className: group, title: label }, input, ...inner);
  }
  function mark(labels, chosen) {
    for (const label of labels) {
      const on = label.querySelector("input").value === String(chosen);
      label.classList.toggle("on", on);
      label.querySelector("input").checked = on;
    }
  }

  function stage() {
    const img = (className) => h("img", { className, alt: "", draggable: false });
    const frame = (className) => h("div", { className: `frame ${className}` });
    const below = img("below"), pasted = img("pasted"), cover = img("cover saol-overlay");
    const found = frame("found saol-found"), truth = frame("truth saol-truth"), cell = frame("cell saol-cell"), patch = frame("patch saol-patch");
    for (const [cx, cy] of [[0, 1], [2, 1], [0, 3], [2, 3]]) {
      patch.append(h("span", { className: `handle saol-${cy === 1 ? "n" : "s"}${cx === 0 ? "w" : "e"}`, style: `left:${50 * cx}%; top:${50 * cy - 50}%` }));
    }
    for (const [key, value] of Object.entries({ tabindex: 0, role: "group", "aria-roledescription": "movable patch" })) patch.setAttribute(key, value);
    const node = h("div", { className: "stage saol-stage" }, below, pasted, cover, truth, found, cell, patch);
    const low = h("small", { className: "saol-low" }), ramp = h("div", { className: "ramp" }), high = h("small"), readout = h("div", { className: "saol-hover" });
    const legend = h("div", { className: "bar" }, low, ramp, high);
    let box = null, drag = null, over = null;

    const place = (frame, b, visible = true) => Object.assign(frame.style, { display: visible && b ? "" : "none" }, b && {
      left: `${100 * b[0] / width}%`, top: `${100 * b[1] / height}%`, width: `${100 * (b[2] - b[0]) / width}%`, height: `${100 * (b[3] - b[1]) / height}%` });
    const draw = () => {
      place(patch, box);
      pasted.style.clipPath = `inset(${100 * box[1] / height}% ${100 - 100 * box[2] / width}% ${100 - 100 * box[3] / height}% ${100 * box[0] / width}%)`;
      patch.setAttribute("aria-label", `Patch at ${box[0]}, ${box[1]}, ${box[2] - box[0]} wide, ${box[3] - box[1]} high. Arrow keys move it, with Shift they resize it.`);
    };
    const moved = (from, dx, dy) => {
      const x = clamp(from[0] + dx, 0, width - from[2] + from[0]), y = clamp(from[1] + dy, 0, height - from[3] + from[1]);
      return [x, y, x + from[2] - from[0], y + from[3] - from[1]];
    };
    const resized = (from, handle, dx, dy) => {
      const b = [...from];
      if (handle.includes("w")) b[0] = clamp(b[0] + dx, 0, b[2]); else b[2] = clamp(b[2] + dx, b[0], width);
      if (handle.includes("n")) b[1] = clamp(b[1] + dy, 0, b[3]); else b[3] = clamp(b[3] + dy, b[1], height);
      return b;
    };
    patch.onpointerdown = (e) => {
      drag = { x: e.clientX, y: e.clientY, from: box, handle: (/saol-([ns][we])/.exec(e.target.className) || [])[1] };
      patch.setPointerCapture(e.pointerId);
    };
    patch.onpointermove = (e) => {
      if (!drag) return;
      const unit = node.getBoundingClientRect().width / width, step = [(e.clientX - drag.x) / unit, (e.clientY - drag.y) / unit].map(Math.round);
      box = drag.handle ? resized(drag.from, drag.handle, ...step) : moved(drag.from, ...step);
      node.classList.add("dragging"); draw();
    };
    patch.onpointerup = () => {
      const changed = drag && String(box) !== String(drag.from);
      drag = null;
      if (changed) choose({ box }); else node.classList.remove("dragging");
    };
    patch.onpointercancel = () => { if (drag) box = drag.from; drag = null; node.classList.remove("dragging"); draw(); };
    patch.onkeydown = (e) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (!step) return;
      e.preventDefault(); e.stopPropagation();
      box = e.shiftKey ? resized(box, "se", ...step) : moved(box, ...step);
      draw(); choose({ box });
    };
    const tellCell = () => {
      const [rows, columns] = model.get("cells").shape, raw = model.get("cells").values, size = rows * columns;
      const values = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
      const i = over ? Math.floor(over[1] * rows) * columns + Math.floor(over[0] * columns) : values.subarray(0, size).indexOf(Math.max(...values.subarray(0, size)));
      const row = Math.floor(i / columns), column = i % columns, per = [width / columns, height / rows];
      readout.textContent = `${over ? "Row" : "Peak of A: row"} ${row + 1}, column ${column + 1}: A ${percent(values[i])}, says “${name(values[2 * size + i])}” with ${percent(values[size + i])}`;
      place(cell, [column * per[0], row * per[1], (column + 1) * per[0], (row + 1) * per[1]], Boolean(over));
    };
    node.addEventListener("pointermove", (e) => {
      const r = node.getBoundingClientRect();
      over = drag ? null : [(e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height].map((v) => clamp(v, 0, 0.9999));
      tellCell();
    });
    node.addEventListener("pointerleave", () => { over = null; tellCell(); });

    return { node: h("div", {}, node, legend, readout), paint(c, n) {
      show(below, model.get("pictures").base.png); show(pasted, model.get("pictures").source.png); show(cover, model.get("overlay").png);
      cover.style.opacity = c.overlay === "none" ? 0 : c.opacity;
      const grown = (b) => b && [b[0], b[1], b[2] + 1, b[3] + 1];
      place(found, grown(n.box)); place(truth, grown(n.truth));
      if (!drag) { box = c.box; node.classList.remove("dragging"); draw(); }
      const limits = (model.get("tiles")[c.overlay] || {}).limits;
      legend.style.visibility = limits ? "" : "hidden";
      ramp.style.background = `linear-gradient(to right, ${RAMPS[c.colours]})`;
      [low.textContent, high.textContent] = (limits || [0, 0]).map((v) => String(Math.abs(v) < 1e-3 * limits[1] ? 0 : Number(v.toPrecision(2))));
      tellCell();
    } };
  }

  function tiles() {
    const images = {}, captions = {};
    const labels = setup.overlays.map((key) => {
      images[key] = key === "none" ? h("span", { className: "blank" }) : h("img", { alt: "", draggable: false });
      captions[key] = h("span", {});
      return radio("tile", key, `${LABELS[key].replace("(k)", " of k")}: ${HINTS[key]}`, [images[key], captions[key]], () => choose({ overlay: key }));
    });
    const sum = h("small", { className: "saol-sum" });
    return { node: h("div", {}, h("div", { className: "tiles", role: "radiogroup", "aria-label": "Overlay" }, ...labels.flatMap((label, i) => [label, SIGNS[setup.overlays[i]] || ""])), sum), paint(c, n) {
      mark(labels, c.overlay);
      const k = setup.classes[n.k].length > 2 ? "k" : setup.classes[n.k];
      for (const key of setup.overlays) {
        captions[key].textContent = LABELS[key].replace("(k)", `(${k})`);
        if (key !== "none") show(images[key], model.get("tiles")[key].png);
      }
      sum.textContent = `A × Y(${name(n.k)}) adds up over the positions to SAOL's answer: ${percent(n.saol[n.k])}`;
    } };
  }

  function picker(slot, title) {
    const image = h("img", { alt: "" }), label = h("small", {});
    const input = h("input", { type: "file", className: "hidden", accept: "image/*", "aria-label": `Upload: ${title}`, onchange: async () => {
      const [file] = input.files;
      if (file && file.size > setup.limit) tell(`${file.name} is too large: at most ${setup.limit / 1e6} MB are read; make it smaller first`);
      else if (file) model.send({ slot, name: file.name }, undefined, [await file.arrayBuffer()]);
      input.value = "";
    } });
    const random = h("button", { textContent: "Random", "aria-label": `Random: ${title}`, onclick: () => choose({ [slot]: Math.floor(Math.random() * setup.count) }) });
    const labels = setup.thumbs.map((png, i) => {
      const thumb = h("img", { alt: "", draggable: false });
      show(thumb, png);
      return radio(`thumb-${slot}`, i, `${title}: number ${i}, ${name(setup.labels[i])}`, [thumb], () => choose({ [slot]: i }));
    });
    const node = h("div", { className: `slot saol-${slot}`, role: "group", "aria-label": title }, h("h3", { textContent: title }), image,
      h("div", { className: "buttons" }, label, random, h("label", { className: "file" }, "Upload …", input)),
      h("div", { className: "thumbs", role: "radiogroup", "aria-label": `${title}: choose` }, ...labels));
    return { node, paint(c) {
      show(image, model.get("pictures")[slot].png);
      label.textContent = typeof c[slot] === "string" ? "your picture" : name(model.get("pictures")[slot].label);
      mark(labels, c[slot]);
    } };
  }

  function verdict() {
    const rows = setup.classes.map((label, k) => {
      const saol = h("i", {}), gap = h("i", {}), truth = h("b", {}), numbers = h("span", {});
      const row = radio("row", k, label, [h("span", { textContent: label }), h("span", { className: "bars" }, saol, gap, truth), numbers], () => choose({ k }));
      return { row, saol, gap, truth, numbers };
    });
    const list = h("div", { className: "rows saol-rows", role: "radiogroup", "aria-label": "Class k, ranked by SAOL",
      style: `--w:${0.62 * clamp(Math.max(...setup.classes.map((label) => label.length)), 4, 14)}em` }, ...rows.map((r) => r.row));
    const follow = h("input", { type: "checkbox", id: `${id}-follow`, onchange: () => choose({ k: follow.checked ? null : model.get("numbers").k }) });
    const key = (colour) => h("span", { className: "key", style: `background:${colour}` });
    const legend = h("small", {}, key("var(--saol)"), "SAOL", ...(model.get("numbers").gap ? [key("var(--gap)"), "GAP-FC"] : []), key("var(--jp-ui-font-color1, #111)"), "true share");
    const patch = h("div", { className: "saol-patch-told" });
    const node = h("div", {}, h("h3", { textContent: "What both output layers say" }), legend, list,
      h("label", {}, follow, " k follows SAOL's first class"), patch);
    let order = "";
    return { node, paint(c, n) {
      const gap = n.gap || n.saol, most = rows.map((_, k) => Math.max(n.saol[k], gap[k], n.true[k]));
      const kept = new Set([...most.keys()].sort((a, b) => most[b] - most[a]).slice(0, 10)).add(n.k);
      const ranked = [...kept].sort((a, b) => n.saol[b] - n.saol[a]);
      if (String(ranked) !== order) {
        const focused = document.activeElement;
        list.replaceChildren(...ranked.map((k) => rows[k].row));
        if (focused && list.contains(focused)) focused.focus();
        order = String(ranked);
      }
      for (const k of ranked) {
        const r = rows[k];
        r.saol.style.width = `${100 * n.saol[k]}%`; r.gap.style.width = `${100 * gap[k]}%`; r.gap.style.display = n.gap ? "" : "none";
        r.truth.style.left = `${100 * n.true[k]}%`; r.truth.style.display = n.true[k] ? "" : "none";
        r.numbers.textContent = n.gap ? `${percent(n.saol[k])} | ${percent(gap[k])}` : percent(n.saol[k]);
      }
      mark(rows.map((r) => r.row), n.k);
      follow.checked = c.k === null;
      const area = ((c.box[2] - c.box[0]) * (c.box[3] - c.box[1])) / (width * height);
      patch.textContent = area ? `The patch covers ${percent(area)} of the picture and holds ${percent(n.held)} of the attention.` : "The patch is empty: an unmixed picture.";
    } };
  }

  function slider(label, key, props, say, change, live = true) {
    const input = h("input", { type: "range", id: `${id}-${key}`, className: `saol-${key}`, ...props }), out = h("output", { htmlFor: input.id });
    input.oninput = () => { out.textContent = say(Number(input.value)); change(Number(input.value), !live); };
    input.onchange = () => change(Number(input.value), false);
    return { node: h("div", { className: "slider" }, h("label", { htmlFor: input.id, textContent: label }), input, out), set(value) {
      if (Number(input.value) !== value) input.value = value;
      out.textContent = say(value);
    } };
  }

  function sliders() {
    const cover = () => root.querySelector(".saol-overlay").style;
    const opacity = slider("Opacity", "opacity", { min: 0, max: 1, step: 0.05 }, percent, (value, moving) => {
      if (model.get("choices").overlay !== "none") cover().opacity = value;  // seen here at once, told when let go
      if (!moving) choose({ opacity: value });
    }, false);
    const threshold = slider("Threshold", "threshold", { min: 0, max: 0.95, step: 0.01 }, (v) => v.toFixed(2), (value) => choose({ threshold: value }));
    const list = (key, label, options) => {
      const node = h("select", { id: `${id}-${key}`, onchange: () => choose({ [key]: node.value }) }, ...Object.entries(options).map(([value, textContent]) => h("option", { value, textContent })));
      return [h("label", { htmlFor: node.id, textContent: label + " " }), node];
    };
    const scale = list("scale", "Scale", { own: "per map", shared: "shared" });
    const colours = list("colours", "Colours", { viridis: "viridis", cividis: "cividis" });
    const iou = h("div", { className: "saol-iou" });
    const node = h("div", {}, h("h3", { textContent: "Overlay and box" }), opacity.node, threshold.node, iou,
      h("div", { style: "margin-top:4px" }, ...scale, " ", ...colours));
    return { node, paint(c, n) {
      opacity.set(c.opacity); threshold.set(c.threshold);
      scale[1].value = c.scale; colours[1].value = c.colours;
      const swatch = n.box ? h("span", { className: "key", style: "background:var(--found);margin-left:0" }) : "";
      const told = n.iou === null ? (n.box ? "Box of the map; k has no known true box here." : "No box.") : `Box of the map. IoU with ${c.overlay === "mask" ? "the patch" : "the true one (dashed)"}: ${n.iou.toFixed(2)}`;
      iou.replaceChildren(swatch, told);
    } };
  }

  function foot() {
    const edge = (label, axis, far) => slider(label, `box-${label}`, { min: 0, max: axis ? height : width, step: 1 }, String, (value) => {
      const b = [...model.get("choices").box], full = axis ? height : width;
      const side = far ? value : b[axis + 2] - b[axis], start = clamp(far ? b[axis] : value, 0, full - side);
      b[axis] = start; b[axis + 2] = start + side;
      choose({ box: b });
    });
    const edges = [edge("x", 0), edge("y", 1), edge("width", 0, true), edge("height", 1, true)];
    const text = () => JSON.stringify(model.get("choices"));
    const input = h("input", { type: "file", className: "hidden", accept: ".json,application/json", "aria-label": "Load a state", onchange: async () => {
      const [file] = input.files;
      if (file && file.size > setup.limit) tell(`${file.name} is too large for a state`);
      else if (file) model.send({ name: file.name, text: await file.text() });
      input.value = "";
    } });
    const link = async () => {
      const hash = btoa(String.fromCharCode(...new TextEncoder().encode(text()))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
      const url = `${location.origin}${location.pathname}#saol=${hash}`;
      try { await navigator.clipboard.writeText(url); tell("The link to this state is copied."); } catch { tell(url); }
    };
    const button = (textContent, className, onclick) => h("button", { textContent, className, onclick });
    const node = h("div", { className: "foot" }, h("strong", { textContent: "Patch" }), ...edges.map((e) => e.node),
      h("div", { className: "ends" }, h("span", { textContent: "Save" }), button("SVG", "saol-svg", () => model.send({ figure: "svg" })),
        button("PNG", "saol-png", () => model.send({ figure: "png" })), button("State", "saol-json", () => save("saol-state.json", text())),
        h("label", { className: "file" }, "Load state …", input), button("Copy link", "saol-link", link)));
    return { node, paint(c) {
      [c.box[0], c.box[1], c.box[2] - c.box[0], c.box[3] - c.box[1]].forEach((value, i) => edges[i].set(value));
    } };
  }
}

export default { render };
