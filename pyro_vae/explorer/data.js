// The data of an explorer: points, observations, scores, and draws from posteriors.

import { arrayOf } from "./decoder.js";
import { element, number } from "./drawing.js";
import { Colouring } from "./map.js";

/** Return rows of an array of numbers. */
function rowsOf(array, width) {
  return Array.from({ length: array.length / width }, (_, i) =>
    Array.from(array.subarray(i * width, (i + 1) * width)));
}

export class Data {
  constructor(contents) {
    this.contents = contents;
    const { data, observation, latents, clouds } = contents, x = arrayOf(data.x);
    const isImage = observation.kind === "image", scale = isImage ? 255 : 1; // bytes
    const size = isImage ? observation.shape.reduce((a, b) => a * b) : observation.columns.length;
    this.datum = (i) => Float32Array.from(x.subarray(i * size, (i + 1) * size), (v) => v / scale);
    this.points = rowsOf(arrayOf(data.z), latents.length);
    this.logP = arrayOf(data.log_p);
    this.khat = arrayOf(data.khat);
    if (contents.conditions) {
      this.conditions = rowsOf(arrayOf(contents.conditions.values), contents.conditions.size);
    }
    this.score = contents.conditions ? "log p(x|y)" : "log p(x)";
    this.first = clouds.data[0] ?? 0;
    this.clouds = ["encoder", "refined"].filter((kind) => clouds[kind])
      .map((kind) => ({ kind, draws: rowsOf(arrayOf(clouds[kind]), latents.length) }));
  }

  /** Return the draws from the posterior of a datum, of each kind; null if they are not stored. */
  draws(i) {
    const { data, draws: count } = this.contents.clouds, place = data.indexOf(i);
    if (place < 0) return null;
    return this.clouds.map(({ kind, draws }) =>
      ({ kind, draws: draws.slice(place * count, (place + 1) * count) }));
  }

  colourings() {
    const { conditions, data, observation } = this.contents, found = [];
    if (data.labels) found.push(new Colouring("class", data.labels, data.class_names));
    if (conditions && conditions.of.length) {
      found.push(new Colouring("condition", conditions.of, conditions.names));
    }
    found.push(new Colouring(`${this.score}, nats`, this.logP), new Colouring("k-hat", this.khat));
    (observation.columns || []).forEach((column, place) => {
      const values = this.points.map((_, i) => this.datum(i)[place]);
      const codes = column.levels && values.map((v) => (Number.isNaN(v) ? -1 : Math.round(v)));
      found.push(codes ? new Colouring(column.name, codes, column.levels.map(String))
        : new Colouring(column.name, values));
    });
    return found;
  }

  describe(i) {
    const { data } = this.contents, limit = data.khat_threshold, high = this.khat[i] > limit;
    const { conditions } = this.contents;
    const condition = conditions && conditions.of.length ? `${conditions.names[conditions.of[i]]} · ` : "";
    const label = data.labels && data.labels[i] >= 0 ? `class ${data.class_names[data.labels[i]]} · ` : "";
    return [element("strong", {}, `Datum ${data.rows[i]}`), ` · ${label}${condition}${this.score} ${
      number(this.logP[i], 4)} nats · `,
      element("span", { class: high ? "pv-warning" : "" }, `k-hat ${number(this.khat[i], 2)}`
        + (high ? `, above ${number(limit, 2)}: ${this.score} is unreliable` : ""))];
  }

  farthest(i) {
    const gaps = this.points.map((z) => z.reduce((sum, v, k) => sum + (v - this.points[i][k]) ** 2, 0));
    return gaps.indexOf(Math.max(...gaps));
  }
}
