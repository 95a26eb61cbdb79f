// The map: data as points of a view of the latent space, a point that is dragged, draws, a path.

import { classColour, isDark, number, scaleColour } from "./drawing.js";

const MARGIN = { left: 52, right: 14, top: 14, bottom: 42 };
const FONT = "13px system-ui, sans-serif";
const TILES = 15; // decoded pictures along each side

function quantiles(values, low, high) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  if (!sorted.length) return [0, 1];
  const at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
  return [at(low), at(high)];
}

function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) },
    (_, i) => +((first + i) * step).toPrecision(6));
}

/** Colours of the data: of classes, or of a number from dark to bright. */
export class Colouring {
  constructor(label, values, names = null) {
    Object.assign(this, { label, values, names });
    this.range = names ? null : quantiles(values, 0.02, 0.98);
  }

  of(i) {
    const value = this.values[i];
    if (this.names) return value < 0 ? "#888888" : classColour(value);
    if (!Number.isFinite(value)) return isDark() ? "#666666" : "#bbbbbb";
    const [low, high] = this.range;
    return scaleColour(high > low ? (value - low) / (high - low) : 0.5);
  }
}

export class LatentMap {
  constructor(canvas, points, settings) {
    Object.assign(this, { canvas, points, settings, highlighted: null, tiles: false });
    this.still = document.createElement("canvas"); // all that does not move
  }

  resize() {
    const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    [this.width, this.height] = [Math.max(box.width, 200), Math.max(box.height, 200)];
    for (const canvas of [this.canvas, this.still]) {
      [canvas.width, canvas.height] = [this.width * ratio, this.height * ratio];
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    if (this.view) this.fit();
  }

  show(view, colouring) {
    Object.assign(this, { view, colouring });
    this.places = this.points.map((z, i) => {
      const [x, y] = view.of(z);
      return [x, view.flat ? ((i * 0.618034) % 1) - 0.5 : y];
    });
    this.fit();
  }

  /** Choose the range of the axes: nearly all data and the prior, with one scale for both axes. */
  fit() {
    const inner = [this.width - MARGIN.left - MARGIN.right, this.height - MARGIN.top - MARGIN.bottom];
    const wide = { normal: 2, sphere: 1 }[this.settings.geometry] || 0; // of the prior
    const spans = [0, 1].map((i) => {
      const [low, high] = quantiles(this.places.map((place) => place[i]), 0.004, 0.996);
      const centre = this.view.flat && i ? 0 : -this.view.axes[i].offset;
      return [Math.min(low, centre - wide), Math.max(high, centre + wide)];
    });
    const sizes = spans.map(([low, high]) => Math.max(1.16 * (high - low), 1e-3));
    const unit = Math.max(sizes[0] / inner[0], sizes[1] / inner[1]);
    this.units = this.view.flat ? sizes.map((size, i) => size / inner[i]) : [unit, unit];
    this.middle = spans.map(([low, high]) => (low + high) / 2);
    this.background();
  }

  toScreen([x, y]) {
    const width = this.width - MARGIN.left - MARGIN.right;
    const height = this.height - MARGIN.top - MARGIN.bottom;
    return [MARGIN.left + width / 2 + (x - this.middle[0]) / this.units[0],
      MARGIN.top + height / 2 - (y - this.middle[1]) / this.units[1]];
  }

  toPlane([x, y]) {
    const width = this.width - MARGIN.left - MARGIN.right;
    const height = this.height - MARGIN.top - MARGIN.bottom;
    return [this.middle[0] + (x - MARGIN.left - width / 2) * this.units[0],
      this.middle[1] - (y - MARGIN.top - height / 2) * this.units[1]];
  }

  /** Return the number of the datum within some pixels of a place, or -1. */
  nearest([x, y], within) {
    let best = -1, least = within * within;
    this.places.forEach((place, i) => {
      const [px, py] = this.toScreen(place), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  colour(name) {
    return getComputedStyle(this.canvas).getPropertyValue(name).trim();
  }

  background() {
    const context = this.still.getContext("2d");
    context.clearRect(0, 0, this.width, this.height);
    this.axes(context);
    this.clip(context);
    if (this.tiles) this.settings.tiles(context, this, TILES);
    this.data(context);
    this.prior(context);
    this.names(context);
    context.restore();
  }

  clip(context) {
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top, this.width - MARGIN.left - MARGIN.right,
      this.height - MARGIN.top - MARGIN.bottom);
    context.clip();
  }

  axes(context) {
    const [left, right] = [MARGIN.left, this.width - MARGIN.right];
    const [top, bottom] = [MARGIN.top, this.height - MARGIN.bottom];
    const [xs, ys] = [this.toPlane([left, bottom]), this.toPlane([right, top])];
    Object.assign(context, { font: FONT, lineWidth: 1, fillStyle: this.colour("--pv-soft"),
      strokeStyle: this.colour("--pv-line"), textAlign: "center", textBaseline: "top" });
    context.strokeRect(left, top, right - left, bottom - top);
    for (const value of ticks(xs[0], ys[0])) {
      const [x] = this.toScreen([value, 0]);
      context.fillText(number(value), x, bottom + 5);
      this.line(context, [x, top], [x, bottom]);
    }
    context.fillText(`${this.view.axes[0].label} →`, (left + right) / 2, bottom + 23);
    context.textBaseline = "middle";
    if (!this.view.flat) {
      context.textAlign = "right";
      for (const value of ticks(xs[1], ys[1])) {
        const [, y] = this.toScreen([0, value]);
        context.fillText(number(value), left - 6, y);
        this.line(context, [left, y], [right, y]);
      }
    }
    context.save();
    context.translate(11, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    const label = this.view.flat ? "spread for legibility" : `${this.view.axes[1].label} →`;
    context.fillText(label, 0, 0);
    context.restore();
  }

  line(context, from, to) {
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  }

  /** Circles of one and two standard deviations of a standard normal prior; the unit sphere. */
  prior(context) {
    const radii = { normal: [1, 2], plane: [], sphere: [1] }[this.settings.geometry] || [];
    if (this.view.flat) return;
    const centre = this.view.axes.map((axis) => -axis.offset);
    Object.assign(context, { strokeStyle: this.colour("--pv-soft"), lineWidth: 1, font: FONT,
      fillStyle: this.colour("--pv-soft"), textAlign: "center", textBaseline: "bottom" });
    for (const radius of radii) {
      const [x, y] = this.toScreen(centre), size = radius / this.units[0];
      context.setLineDash([4, 4]);
      context.beginPath();
      context.arc(x, y, size, 0, 2 * Math.PI);
      context.stroke();
      context.setLineDash([]);
      const text = this.settings.geometry === "sphere" ? "sphere" : `${radius} sd of the prior`;
      if (this.tiles) continue;
      Object.assign(context, { strokeStyle: this.colour("--pv-paper"), lineWidth: 4 });
      context.strokeText(text, x, y - size - 3);
      context.fillText(text, x, y - size - 3);
      Object.assign(context, { strokeStyle: this.colour("--pv-soft"), lineWidth: 1 });
    }
  }

  data(context) {
    const size = Math.min(5, Math.max(2.5, 90 / Math.sqrt(this.points.length)));
    this.places.forEach((place, i) => {
      const [x, y] = this.toScreen(place), shown = this.colouring.values[i];
      const faint = this.highlighted !== null && shown !== this.highlighted;
      Object.assign(context, { fillStyle: this.colouring.of(i), globalAlpha: faint ? 0.08 : 0.75 });
      context.beginPath();
      context.arc(x, y, size, 0, 2 * Math.PI);
      context.fill();
    });
    context.globalAlpha = 1;
  }

  /** Write the name of each class at the median of its points, so that colours are not needed. */
  names(context) {
    const { names, values } = this.colouring;
    if (!names || names.length > 12 || this.tiles) return;
    Object.assign(context, { font: "600 15px system-ui, sans-serif", textAlign: "center",
      textBaseline: "middle", lineWidth: 4, strokeStyle: this.colour("--pv-paper"), lineJoin: "round" });
    names.forEach((name, label) => {
      const own = this.places.filter((_, i) => values[i] === label);
      if (!own.length) return;
      const [x, y] = this.toScreen([0, 1].map((i) => quantiles(own.map((p) => p[i]), 0.5, 1)[0]));
      context.strokeText(name, x, y);
      context.fillStyle = classColour(label);
      context.fillText(name, x, y);
    });
  }

  draw({ z, path, ends, clouds, hovered }) {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.width, this.height);
    context.drawImage(this.still, 0, 0, this.width, this.height);
    const at = (value) => {
      const [x, y] = this.view.of(value);
      return this.toScreen([x, this.view.flat ? 0 : y]);
    };
    this.clip(context);
    for (const { draws, kind } of clouds) this.cloud(context, draws.map(at), kind);
    context.beginPath();
    path.map(at).forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    Object.assign(context, { strokeStyle: this.colour("--pv-paper"), lineWidth: 5 });
    context.stroke();
    Object.assign(context, { strokeStyle: this.colour("--pv-ink"), lineWidth: 2, font: FONT });
    context.setLineDash([6, 4]);
    context.stroke();
    context.setLineDash([]);
    context.restore();
    ["A", "B"].forEach((name, i) => ends[i] && this.flag(context, at(ends[i]), name));
    if (hovered >= 0) this.ring(context, this.toScreen(this.places[hovered]), 8, 2);
    this.handle(context, at(z));
  }

  cloud(context, places, kind) {
    const colour = this.colour(kind === "encoder" ? "--pv-encoder" : "--pv-refined");
    Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineWidth: 1.5 });
    for (const [x, y] of places) {
      context.beginPath();
      if (kind === "encoder") context.arc(x, y, 2.5, 0, 2 * Math.PI);
      else for (const side of [-1, 1]) {
        context.moveTo(x - 3, y - 3 * side);
        context.lineTo(x + 3, y + 3 * side);
      }
      context.stroke();
    }
  }

  flag(context, [x, y], name) {
    Object.assign(context, { fillStyle: this.colour("--pv-ink"), font: "600 12px system-ui, sans-serif",
      textAlign: "center", textBaseline: "middle" });
    context.beginPath();
    context.arc(x, y, 9, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = this.colour("--pv-paper");
    context.fillText(name, x, y + 0.5);
  }

  ring(context, [x, y], radius, width) {
    Object.assign(context, { strokeStyle: this.colour("--pv-ink"), lineWidth: width });
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }

  handle(context, [x, y]) {
    Object.assign(context, { strokeStyle: this.colour("--pv-paper"), lineWidth: 6 });
    context.beginPath();
    context.arc(x, y, 11, 0, 2 * Math.PI);
    context.stroke();
    this.ring(context, [x, y], 11, 3);
    context.fillStyle = this.colour("--pv-accent");
    context.beginPath();
    context.arc(x, y, 4, 0, 2 * Math.PI);
    context.fill();
  }
}
