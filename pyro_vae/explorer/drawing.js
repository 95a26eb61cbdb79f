// Colours, elements, and pictures of observations.

const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b6fd0", "#8a8a2a",
  "#882255", "#777777"];
const DARK = ["#4da3e0", "#f0804a", "#2cc295", "#e59bc4", "#f0b429", "#8fd0f5", "#a99bf0", "#c9c95a",
  "#d0608f", "#a8a8a8"];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

export const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
export const classColour = (i) => (isDark() ? DARK : LIGHT)[i % LIGHT.length];

/** Return a colour for a share in [0, 1]. The ends that are hard to see on the page are left out. */
export function scaleColour(share) {
  const [first, last] = isDark() ? [0.25, 1] : [0, 0.88];
  const at = (first + (last - first) * Math.min(1, Math.max(0, share))) * (VIRIDIS.length - 1);
  const low = Math.min(VIRIDIS.length - 2, Math.floor(at)), part = at - low;
  const mixed = VIRIDIS[low].map((v, i) => Math.round(v + part * (VIRIDIS[low + 1][i] - v)));
  return `rgb(${mixed.join(" ")})`;
}

/** Return a new element with attributes, listeners (on...) and children. */
export function element(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== null));
  return found;
}

export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "missing" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("-", "−");
  const text = size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(digits));
  return text.replace("-", "−");
}

/** Write an image with values in [0, 1], shape [channels, height, width], into a canvas. */
export function paint(canvas, values, [channels, height, width]) {
  if (canvas.width !== width || canvas.height !== height) {
    [canvas.width, canvas.height] = [width, height];
  }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const plane = height * width, step = channels >= 3 ? plane : 0;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * values[i + c * step];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Return the text of a value of a column. */
export function textOf(column, value) {
  if (Number.isNaN(value)) return "missing";
  if (column.levels) return String(column.levels[Math.round(value)] ?? number(value));
  if (column.origin) {
    const date = new Date(Date.parse(column.origin) + 86400000 * value);
    return Number.isNaN(date.valueOf()) ? number(value) : date.toISOString().slice(0, 10);
  }
  return number(value);
}

/** Rows of columns: the name, a track with the decoded value and that of a datum, and a text. */
export class Rows {
  constructor(observation) {
    this.columns = observation.shown.map((place) => ({ place, ...observation.columns[place] }));
    const hidden = observation.columns.length - this.columns.length;
    this.element = element("div", { class: "pv-rows" });
    this.rows = this.columns.map((column) => this.row(column));
    if (hidden) {
      this.element.append(element("p", { class: "pv-soft" },
        `${this.columns.length} of ${observation.columns.length.toLocaleString("en")} columns: those `
        + "that vary most. Their scale is logarithmic if it is marked log."));
    }
  }

  row(column) {
    const name = element("span", { class: "pv-name", title: column.name }, column.name);
    const ends = column.levels ? column.levels.join(", ")
      : `${textOf(column, column.low)} to ${textOf(column, column.high)}`;
    const track = element("span", { class: "pv-track", title: ends }), text = element("span", { class: "pv-value" });
    const parts = (column.levels || [0]).map((level, i) => {
      const part = element("span", { class: column.levels ? "pv-level" : "pv-fill", title: `${level}` });
      if (column.levels) part.style.background = `var(--pv-level-${i % 8})`;
      return part;
    });
    const mark = element("span", { class: "pv-mark", hidden: true });
    track.append(...parts, mark);
    if (column.log) name.append(element("small", {}, " log"));
    this.element.append(element("div", { class: "pv-row" }, name, track, text));
    return { column, parts, mark, text };
  }

  share({ low, high, log }, value) {
    const scaled = log ? Math.log1p : (v) => v;
    const [from, to] = [scaled(low), scaled(high)];
    return to > from ? Math.min(1, Math.max(0, (scaled(value) - from) / (to - from))) : 0.5;
  }

  update({ mean, shares }, datum) {
    for (const { column, parts, mark, text } of this.rows) {
      const value = mean[column.place], given = datum ? datum[column.place] : NaN;
      mark.hidden = Number.isNaN(given);
      if (column.levels) {
        const found = shares.get(column.place) || [1 - value, value];
        const best = found.indexOf(Math.max(...found));
        parts.forEach((part, i) => { part.style.width = `${100 * found[i]}%`; });
        text.textContent = `${column.levels[best]} ${Math.round(100 * found[best])}%`;
        const before = found.slice(0, given).reduce((a, b) => a + b, 0);
        if (!mark.hidden) mark.style.left = `${100 * (before + found[given] / 2)}%`;
      } else {
        parts[0].style.width = `${100 * this.share(column, value)}%`;
        text.textContent = textOf(column, value);
        if (!mark.hidden) mark.style.left = `${100 * this.share(column, given)}%`;
      }
    }
  }
}
