// The latent explorer: `mount(element, contents)` builds it; anywidget calls `render`.

import { Data } from "./data.js";
import { decoderOf } from "./decoder.js";
import { PATHS, View, pathAt, projected, withLatent } from "./geometry.js";
import { Rows, classColour, element, number, paint, scaleColour, textOf } from "./drawing.js";
import { LatentMap } from "./map.js";

const FIRST_LATENTS = 10; // sliders before the button that shows all
const STRIP = 9; // pictures along a path

class Explorer {
  constructor(root, contents) {
    Object.assign(this, { root, contents, geometry: contents.geometry });
    this.run = decoderOf(contents.decoder);
    this.decode = (z) => this.run([...z, ...this.y]); // under the condition y
    this.data = new Data(contents);
    this.points = this.data.points;
    const { latents } = contents;
    this.order = latents.map((_, i) => i).sort((a, b) => latents[b].kl - latents[a].kl);
    this.z = this.points[0].slice();
    this.y = [];
    this.chosen = this.hovered = -1;
    this.ends = [null, null];
    this.t = 0;
    this.build();
    this.listen();
    this.choose(this.data.first);
    this.setEnd(0, this.chosen);
    this.setEnd(1, this.data.farthest(this.chosen));
    this.resize();
  }

  // Elements

  build() {
    const { title, notes } = this.contents;
    this.canvas = element("canvas", { tabindex: 0, role: "application", "aria-label":
      "Map of the encoded data. Arrow keys move the point, with Shift further. Enter chooses the "
      + "nearest datum." });
    this.tip = element("div", { class: "pv-tip", hidden: true });
    this.legend = element("div", { class: "pv-legend" });
    this.said = element("p", { class: "pv-soft pv-said", "aria-live": "polite" });
    this.map = new LatentMap(this.canvas, this.points, {
      geometry: this.geometry, tiles: (...given) => this.tiles(...given) });
    const figure = element("figure", { class: "pv-map" }, this.canvas, this.tip, this.legend);
    const below = element("div", { class: "pv-below" }, this.buildSliders(), this.buildPath());
    this.root.replaceChildren(element("section", { class: "pv-explorer", "aria-label": title },
      this.buildBar(), element("div", { class: "pv-main" }, figure, this.buildSide()), below,
      element("p", { class: "pv-soft pv-notes" }, notes.join(" "), this.checked())));
  }

  buildBar() {
    this.axisOptions = [...this.contents.axes, ...this.order.map((i) => ({
      label: `z[${i}]`, title: `z[${i}], ${this.contents.latents[i].kl.toFixed(2)} nats`,
      vector: this.contents.latents.map((_, k) => (k === i ? 1 : 0)), offset: 0 }))];
    const only = this.axisOptions.length === 1;
    this.selects = ["Across", "Up"].map((name, place) => this.select(name,
      this.axisOptions.map((axis) => axis.title || axis.label), Math.min(place, this.axisOptions.length - 1),
      () => this.setAxes(place)));
    this.colourings = this.data.colourings();
    this.colourSelect = this.select("Colour", this.colourings.map(({ label }) => label), 0,
      () => this.setColour());
    const shown = only ? [this.selects[0]] : this.selects;
    const bar = element("div", { class: "pv-bar" }, ...shown.map((s) => s.parentNode ?? s),
      this.colourSelect.parentNode, ...this.buildConditions());
    if (this.contents.observation.kind === "image") {
      this.tileBox = element("input", { type: "checkbox", onchange: () => {
        this.map.tiles = this.tileBox.checked;
        this.map.background();
        this.changed();
      } });
      bar.append(element("label", { class: "pv-check" }, this.tileBox, "decode the whole plane"));
    }
    return bar;
  }

  /** Return the choice of y, for a model of x given y. */
  buildConditions() {
    if (!this.contents.conditions) return [];
    this.conditionSelect = this.select("Condition", ["of the chosen datum", ...this.contents.conditions.names], 0,
      () => this.setCondition());
    return [this.conditionSelect.parentNode];
  }

  select(name, options, index, change) {
    const found = element("select", { onchange: change },
      ...options.map((option, i) => element("option", { value: i, selected: i === index }, option)));
    element("label", {}, element("span", {}, name), found);
    return found;
  }

  buildSide() {
    const { observation } = this.contents;
    this.facts = element("p", { class: "pv-facts" });
    this.endButtons = ["A", "B"].map((name, i) => element("button", { type: "button",
      onclick: () => this.setEnd(i, this.chosen) }, `Path ${i ? "to" : "from"} it (${name})`));
    this.cloudBox = element("input", { type: "checkbox", checked: true, onchange: () => this.changed() });
    this.cloudLabel = element("span", {});
    const controls = element("div", { class: "pv-controls" }, ...this.endButtons,
      element("label", { class: "pv-check" }, this.cloudBox, this.cloudLabel));
    if (observation.kind === "image") {
      this.picture = element("canvas", { role: "img", "aria-label": "E[x|z] at the point" });
      this.original = element("canvas", { role: "img", "aria-label": "x of the chosen datum" });
      const pictures = element("div", { class: "pv-pictures" },
        element("figure", {}, this.picture, element("figcaption", {}, "E[x|z] at the point")),
        element("figure", {}, this.original, element("figcaption", {}, "x of the chosen datum")));
      return element("div", { class: "pv-side" }, pictures, this.facts, controls, this.said);
    }
    this.rows = new Rows(observation);
    return element("div", { class: "pv-side" },
      element("p", { class: "pv-soft" }, "E[x|z] at the point; ", element("span", { class: "pv-mark-key" }),
        " x of the chosen datum"), this.rows.element, this.facts, controls, this.said);
  }

  buildSliders() {
    const { latents } = this.contents, most = Math.max(...latents.map(({ kl }) => kl), 1e-9);
    this.sliders = this.order.map((i, place) => {
      const { kl, active, low, high } = latents[i];
      const input = element("input", { type: "range", min: low, max: high, step: (high - low) / 200,
        "aria-label": `z[${i}]`, oninput: () => this.moveTo(
          withLatent(this.z, i, Number(input.value), this.geometry)) });
      const value = element("output", {}), bar = element("span", { class: "pv-kl" });
      bar.style.width = `${(48 * Math.max(kl, 0)) / most}px`;
      const row = element("label", { class: active ? "pv-slider" : "pv-slider pv-inactive",
        hidden: place >= FIRST_LATENTS }, element("span", { class: "pv-name" }, `z[${i}]`),
      element("span", { class: "pv-klbox", title: active ? "KL to the prior" : "inactive" }, bar,
        `${kl.toFixed(2)} nats`), input, value);
      return { i, input, value, row };
    });
    const more = element("button", { type: "button", hidden: latents.length <= FIRST_LATENTS,
      onclick: () => {
        this.sliders.forEach(({ row }) => { row.hidden = false; });
        more.hidden = true;
      } }, `Show all ${latents.length} latents`);
    return element("div", { class: "pv-box" }, element("h3", {}, "Latents, by their KL to the prior"),
      ...this.sliders.map(({ row }) => row), more);
  }

  buildPath() {
    this.slider = element("input", { type: "range", min: 0, max: 1, step: 0.005, value: 0,
      "aria-label": "Place on the path from A to B", oninput: () => this.walk(Number(this.slider.value)) });
    this.playButton = element("button", { type: "button", onclick: () => this.play() }, "Play");
    this.strip = element("div", { class: "pv-strip" });
    this.pathText = element("p", {});
    const box = element("div", { class: "pv-box" }, element("h3", {}, "Path between two data"),
      this.pathText, element("div", { class: "pv-walk" }, element("span", {}, "A"), this.slider,
        element("span", {}, "B"), this.playButton), this.strip,
      element("p", { class: "pv-soft" }, PATHS[this.geometry === "normal" && this.z.length <= 2
        ? "plane" : this.geometry]));
    return box;
  }

  /** Compare the decoder of the page with the one that was exported. */
  checked() {
    const { z, mean } = this.contents.check, found = this.run(z).mean;
    const worst = mean.reduce((most, value, i) =>
      Math.max(most, Math.abs(value - found[i]) / Math.max(1, Math.abs(value))), 0);
    this.error = worst;
    const good = worst < 1e-3;
    return element("span", { class: good ? "" : "pv-warning" }, good
      ? ` The decoder of this page agrees with vae.decode within ${worst.toExponential(0)}.`
      : ` The decoder of this page differs from vae.decode by ${number(worst)}: do not use it.`);
  }

  // State

  setAxes(place) {
    const [first, second] = this.selects.map((select) => Number(select.value));
    if (first === second && this.axisOptions.length > 1) {
      this.selects[1 - place].value = this.last[place];
    }
    this.last = this.selects.map((select) => Number(select.value));
    const [a, b] = this.last.map((i) => this.axisOptions[i]);
    const view = new View(a, b);
    view.flat = a === b;
    this.map.show(view, this.colourings[Number(this.colourSelect.value)]);
    this.changed();
  }

  setColour() {
    this.map.highlighted = null;
    this.map.colouring = this.colourings[Number(this.colourSelect.value)];
    this.map.background();
    this.drawLegend();
    this.changed();
  }

  setCondition() {
    if (!this.conditionSelect) return;
    const option = Number(this.conditionSelect.value);
    this.y = option ? this.contents.conditions.choices[option - 1] : this.data.conditions[this.chosen];
    if (this.path) this.drawStrip();
    if (this.map.tiles) this.map.background();
    this.changed();
  }

  drawLegend() {
    const { label, names, range } = this.map.colouring;
    if (!names) {
      const stops = Array.from({ length: 9 }, (_, i) => scaleColour(i / 8)).join(", ");
      const ramp = element("span", { class: "pv-ramp", style: `background: linear-gradient(90deg, ${stops})` });
      this.legend.replaceChildren(`${label}: ${number(range[0])}`, ramp, number(range[1]));
      return;
    }
    this.legend.replaceChildren(...names.slice(0, 20).map((name, i) => element("button", { type: "button",
      "aria-pressed": this.map.highlighted === i, onclick: () => {
        this.map.highlighted = this.map.highlighted === i ? null : i;
        this.map.background();
        this.drawLegend();
        this.changed();
      } }, element("span", { class: "pv-dot", style: `background: ${classColour(i)}` }), name)));
  }

  moveTo(z) {
    this.z = projected(Array.from(z), this.geometry);
    this.changed();
  }

  choose(i) {
    this.chosen = i;
    this.setCondition();
    if (this.original) paint(this.original, this.data.datum(i), this.contents.observation.shape);
    this.facts.replaceChildren(...this.data.describe(i));
    this.draws = this.data.draws(i);
    const found = this.draws !== null, refined = this.contents.clouds.refined;
    this.cloudBox.disabled = !found;
    this.cloudLabel.replaceChildren(...(found
      ? ["posterior: ", element("span", { class: "pv-encoder" }, "○ encoder"),
        ...(refined ? [" ", element("span", { class: "pv-refined" }, "× refined")] : [])]
      : [`posterior: stored for ${this.contents.clouds.data.length} of the data`]));
    this.moveTo(this.points[i]);
    this.said.textContent = `Datum ${this.contents.data.rows[i]} is chosen.`;
  }

  setEnd(place, i) {
    this.ends[place] = i;
    if (this.ends.includes(null)) return;
    const [a, b] = this.ends.map((end) => this.points[end]);
    this.path = Array.from({ length: 41 }, (_, k) => pathAt(a, b, k / 40, this.geometry));
    const rows = this.ends.map((end) => this.contents.data.rows[end]);
    this.pathText.textContent = `From datum ${rows[0]} (A) to datum ${rows[1]} (B).`;
    this.drawStrip();
    this.changed();
  }

  drawStrip() {
    if (!this.picture) return;
    this.strip.replaceChildren(...Array.from({ length: STRIP }, (_, k) => {
      const canvas = element("canvas", { "aria-hidden": "true", onclick: () => this.walk(k / (STRIP - 1)) });
      paint(canvas, this.decode(this.path[(k * 40) / (STRIP - 1)]).mean, this.contents.observation.shape);
      return canvas;
    }));
  }

  walk(t) {
    this.t = t;
    this.slider.value = t;
    const [a, b] = this.ends.map((end) => this.points[end]);
    this.moveTo(pathAt(a, b, t, this.geometry));
  }

  play() {
    const start = performance.now();
    this.playing = !this.playing;
    this.playButton.textContent = this.playing ? "Stop" : "Play";
    const next = (now) => {
      if (!this.playing) return;
      const t = Math.min(1, (now - start) / 3000);
      this.walk(t);
      if (t < 1) requestAnimationFrame(next);
      else this.play();
    };
    if (this.playing) requestAnimationFrame(next);
  }

  // Drawing

  changed() {
    if (this.waiting || !this.map.view) return;
    this.waiting = true;
    requestAnimationFrame(() => this.refresh());
  }

  refresh() {
    this.waiting = false;
    this.decoded = this.decode(this.z);
    if (this.picture) paint(this.picture, this.decoded.mean, this.contents.observation.shape);
    else this.rows.update(this.decoded, this.data.datum(this.chosen));
    for (const { i, input, value } of this.sliders) {
      input.value = this.z[i];
      value.textContent = this.z[i].toFixed(2).replace("-", "−");
    }
    const clouds = this.cloudBox.checked && this.draws ? this.draws : [];
    this.map.draw({ z: this.z, path: this.path || [], clouds, hovered: this.hovered,
      ends: this.ends.map((end) => (end === null ? null : this.points[end])) });
  }

  /** Decode a grid over the plane of the map through the point. */
  tiles(context, map, count) {
    const side = Math.min(map.width, map.height) / count, tile = document.createElement("canvas");
    const [columns, rows] = [map.width, map.height].map((size) => Math.ceil(size / side));
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const place = map.toPlane([(column + 0.5) * side, (row + 0.5) * side]);
        const z = projected(map.view.moved(this.z, place), this.geometry);
        paint(tile, this.decode(z).mean, this.contents.observation.shape);
        context.drawImage(tile, column * side, row * side, side, side);
      }
    }
  }

  resize() {
    this.map.resize();
    if (!this.map.view) {
      this.last = [0, 1];
      this.setAxes(0);
      this.drawLegend();
    }
    this.changed();
  }

  // Pointer and keyboard

  listen() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const drag = (at) => this.moveTo(this.map.view.moved(this.z, this.map.toPlane(at)));
    this.canvas.addEventListener("pointerdown", (event) => {
      const at = place(event), [x, y] = this.map.toScreen(this.map.view.of(this.z));
      const onPoint = Math.hypot(x - at[0], y - at[1]) < (event.pointerType === "touch" ? 26 : 14);
      const datum = onPoint ? -1 : this.map.nearest(at, event.pointerType === "touch" ? 14 : 6);
      this.dragging = true;
      this.hover(-1);
      try { this.canvas.setPointerCapture(event.pointerId); } catch { /* a synthetic pointer */ }
      if (datum >= 0) this.choose(datum);
      else if (!onPoint) drag(at);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (this.dragging) drag(place(event));
      else this.hover(this.map.nearest(place(event), 9), place(event));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(name, () => { this.dragging = false; });
    }
    this.canvas.addEventListener("pointerleave", () => this.hover(-1));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.map.background();
      this.drawLegend();
      this.changed();
    });
  }

  key(event) {
    const step = (event.shiftKey ? 40 : 8), moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0],
      ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (moves) {
      const [x, y] = this.map.view.of(this.z), [ux, uy] = this.map.units;
      this.moveTo(this.map.view.moved(this.z, [x + moves[0] * step * ux, y + moves[1] * step * uy]));
    } else if (event.key === "Enter") {
      this.choose(this.map.nearest(this.map.toScreen(this.map.view.of(this.z)), Infinity));
    } else return;
    event.preventDefault();
  }

  hover(i, at = [0, 0]) {
    this.tip.hidden = i < 0;
    if (i === this.hovered) return;
    this.hovered = i;
    this.changed();
    if (i < 0) return;
    const { observation } = this.contents, x = this.data.datum(i), about = [];
    if (observation.kind === "image") {
      about.push(element("canvas", {}));
      paint(about[0], x, observation.shape);
    } else {
      about.push(...observation.shown.slice(0, 8).map((k) => element("div", {},
        `${observation.columns[k].name}: ${textOf(observation.columns[k], x[k])}`)));
    }
    this.tip.replaceChildren(...about, element("div", {}, ...this.data.describe(i)));
    const left = at[0] > this.map.width / 2;
    this.tip.style.left = left ? "auto" : `${at[0] + 16}px`;
    this.tip.style.right = left ? `${this.map.width - at[0] + 16}px` : "auto";
    this.tip.style.top = `${Math.min(at[1], this.map.height - 150)}px`;
  }
}

/** Build the explorer in an element and return it. */
export function mount(root, contents) {
  root.explorer = new Explorer(root, contents);
  return root.explorer;
}

export default { render: ({ model, el }) => { mount(el, model.get("contents")); } };
