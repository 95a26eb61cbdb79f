// Geometry of the latent space: points that the prior supports, paths between them, and views.

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const norm = (a) => Math.sqrt(dot(a, a));
const mixed = (a, b, t) => a.map((value, i) => (1 - t) * value + t * b[i]);

/** Return the point of the support of the prior that belongs to z. */
export function projected(z, geometry) {
  if (geometry === "sphere") {
    const size = norm(z);
    return size > 1e-9 ? z.map((value) => value / size) : z.map((_, i) => (i === 0 ? 1 : 0));
  }
  if (geometry === "simplex") {
    const positive = z.map((value) => Math.max(value, 1e-6));
    const total = positive.reduce((a, b) => a + b, 0);
    return positive.map((value) => value / total);
  }
  if (geometry === "codes") {
    const first = z.indexOf(Math.max(...z));
    return z.map((_, i) => (i === first ? 1 : 0));
  }
  return z;
}

/** Return z with latent i at a value, and the others changed as little as the support allows. */
export function withLatent(z, i, value, geometry) {
  if (geometry === "codes") return z.map((_, k) => (k === i ? 1 : 0));
  const found = z.slice();
  found[i] = value;
  if (geometry !== "sphere" && geometry !== "simplex") return found;
  const power = geometry === "sphere" ? 2 : 1;
  const rest = z.reduce((sum, v, k) => sum + (k === i ? 0 : Math.abs(v) ** power), 0);
  const left = Math.max(0, 1 - Math.abs(value) ** power);
  const factor = rest > 1e-12 ? (left / rest) ** (1 / power) : 0;
  const even = (left / (z.length - 1)) ** (1 / power);
  return found.map((v, k) => (k === i ? value : rest > 1e-12 ? v * factor : even));
}

/** Return the point at t in [0, 1] of the path from a to b. */
export function pathAt(a, b, t, geometry) {
  const sizes = [norm(a), norm(b)];
  const round = geometry === "sphere" || (geometry === "normal" && a.length > 2);
  if (!round || Math.min(...sizes) < 1e-6) return projected(mixed(a, b, t), geometry);
  const cosine = Math.min(1, Math.max(-1, dot(a, b) / (sizes[0] * sizes[1])));
  const angle = Math.acos(cosine), size = (1 - t) * sizes[0] + t * sizes[1];
  if (angle < 1e-4 || angle > Math.PI - 1e-4) return projected(mixed(a, b, t), geometry);
  const [from, to] = [Math.sin((1 - t) * angle), Math.sin(t * angle)];
  return a.map((v, i) => (size / Math.sin(angle)) * ((from * v) / sizes[0] + (to * b[i]) / sizes[1]));
}

export const PATHS = {
  normal: "The path turns around the origin, and its distance from it changes evenly. A straight "
    + "line would pass too near the origin: samples of N(0, I) in many dimensions have norms near "
    + "the square root of their number.",
  plane: "The path is a straight line.",
  sphere: "The path is a great circle of the sphere, the support of the prior.",
  simplex: "The path is a straight line, which stays in the simplex.",
  codes: "The latents are one-hot codes: the path has two points.",
};

/** A linear view of the latent space: two axes with a direction and an offset each. */
export class View {
  constructor(horizontal, vertical) {
    this.axes = [horizontal, vertical];
    const [a, b] = this.axes.map((axis) => axis.vector);
    const [aa, ab, bb] = [dot(a, a), dot(a, b), dot(b, b)];
    const determinant = aa * bb - ab * ab;
    // The smallest change of z that moves the point by (dx, dy).
    this.lift = determinant > 1e-9
      ? (dx, dy) => a.map((v, i) => ((bb * dx - ab * dy) * v + (aa * dy - ab * dx) * b[i]) / determinant)
      : (dx) => a.map((v) => (dx * v) / aa);
  }

  of(z) {
    return this.axes.map(({ vector, offset }) => dot(vector, z) - offset);
  }

  moved(z, [x, y]) {
    const [fromX, fromY] = this.of(z), change = this.lift(x - fromX, y - fromY);
    return z.map((value, i) => value + change[i]);
  }
}
