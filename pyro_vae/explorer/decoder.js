// The decoder of a VAE: layers from explorer/layers.py and means from explorer/means.py, applied to
// one z. A value is { data: Float32Array, shape }.

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function halfToFloat(halves) {
  const found = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const exponent = (halves[i] >> 10) & 31, fraction = halves[i] & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24
      : exponent === 31 ? (fraction ? NaN : Infinity)
      : (1 + fraction / 1024) * 2 ** (exponent - 15);
    found[i] = halves[i] & 0x8000 ? -size : size;
  }
  return found;
}

/** Return an array from { dtype, data }, with the bytes as base64 in little-endian order. */
export function arrayOf({ dtype, data }) {
  const bytes = bytesOf(data);
  if (dtype === "uint8") return bytes;
  if (dtype === "float16") return halfToFloat(new Uint16Array(bytes.buffer));
  return new Float32Array(bytes.buffer);
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus = (x) => (x > 20 ? x : Math.log1p(Math.exp(x)));

function erf(x) { // Abramowitz & Stegun (1964), 7.1.26: within 1.5e-7
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t
    + 0.254829592) * t;
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

function gelu(x, approximate) {
  if (approximate === "none") return 0.5 * x * (1 + erf(x / Math.SQRT2));
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

const FUNCTIONS = {
  elu: (x, op) => (x > 0 ? x : op.alpha * Math.expm1(x)),
  gelu: (x, op) => gelu(x, op.approximate),
  leaky_relu: (x, op) => (x > 0 ? x : op.negative_slope * x),
  relu: (x) => (x > 0 ? x : 0),
  sigmoid: (x) => sigmoid(x),
  silu: (x) => x * sigmoid(x),
  softplus: (x, op) => softplus(op.beta * x) / op.beta,
  tanh: (x) => Math.tanh(x),
};

function linear({ data }, weight, bias) {
  const size = data.length, count = weight.length / size, found = new Float32Array(count);
  for (let row = 0, at = 0; row < count; row++) {
    // Four sums run in parallel in the processor.
    let a = 0, b = 0, c = 0, d = 0, i = 0;
    for (; i + 3 < size; i += 4, at += 4) {
      a += weight[at] * data[i];
      b += weight[at + 1] * data[i + 1];
      c += weight[at + 2] * data[i + 2];
      d += weight[at + 3] * data[i + 3];
    }
    for (; i < size; i++, at++) a += weight[at] * data[i];
    found[row] = a + b + c + d + (bias ? bias[row] : 0);
  }
  return { data: found, shape: [count] };
}

function filled(shape, bias) {
  const plane = shape[1] * shape[2], found = new Float32Array(shape[0] * plane);
  if (bias) for (let i = 0; i < shape[0]; i++) found.fill(bias[i], i * plane, (i + 1) * plane);
  return found;
}

/** Return the first and last index i with 0 <= i * stride + shift < size and i < count. */
function range(shift, stride, size, count) {
  return [Math.max(0, Math.ceil(-shift / stride)),
    Math.min(count - 1, Math.floor((size - 1 - shift) / stride))];
}

/** Call visit(weight, inner, outer, ky, kx) for each entry of the kernels. */
function eachWeight(weight, inner, outer, [height, width], transposed, visit) {
  for (let o = 0, at = 0; o < (transposed ? inner : outer); o++) {
    for (let i = 0; i < (transposed ? outer : inner); i++) {
      for (let ky = 0; ky < height; ky++) {
        for (let kx = 0; kx < width; kx++, at++) {
          visit(weight[at], transposed ? o : i, transposed ? i : o, ky, kx);
        }
      }
    }
  }
}

/** A convolution, or with transposed = true its adjoint: input and output change places. */
function convolution(x, op, weight, bias, kernel, transposed) {
  const found = filled(op.shape, bias), [outer, height, width] = op.shape;
  const [inner, rows, columns] = x.shape, [sy, sx] = op.stride, source = x.data;
  // `large` is the image that the strides step over, `small` has one entry for each step.
  const large = transposed ? [height, width] : [rows, columns];
  const small = transposed ? [rows, columns] : [height, width];
  const each = (w, i, o, ky, kx) => {
    const dy = ky * op.dilation[0] - op.padding[0], dx = kx * op.dilation[1] - op.padding[1];
    const [top, bottom] = range(dy, sy, large[0], small[0]);
    const [left, right] = range(dx, sx, large[1], small[1]);
    for (let y = top; y <= bottom; y++) {
      const stepped = (y * sy + dy) * large[1] + dx, plain = y * small[1];
      const from = i * rows * columns + (transposed ? plain : stepped);
      const to = o * height * width + (transposed ? stepped : plain);
      const by = transposed ? 1 : sx, on = transposed ? sx : 1;
      for (let column = left; column <= right; column++) {
        found[to + column * on] += w * source[from + column * by];
      }
    }
  };
  eachWeight(weight, inner, outer, kernel, transposed, each);
  return { data: found, shape: op.shape };
}

function upsample(x, { shape }) {
  const [channels, height, width] = shape, [, rows, columns] = x.shape;
  const found = new Float32Array(channels * height * width);
  for (let c = 0, at = 0; c < channels; c++) {
    for (let i = 0; i < height; i++) {
      const from = (c * rows + Math.floor((i * rows) / height)) * columns;
      for (let j = 0; j < width; j++) found[at++] = x.data[from + Math.floor((j * columns) / width)];
    }
  }
  return { data: found, shape };
}

function affine(x, scale, shift) {
  const plane = x.data.length / scale.length;
  const data = x.data.map((value, i) => value * scale[Math.floor(i / plane)]
    + shift[Math.floor(i / plane)]);
  return { data, shape: x.shape };
}

// The first half of the outputs times the sigmoid of the second.
function glu(x, shape) {
  const half = x.data.length / 2;
  const data = x.data.slice(0, half).map((value, i) => value * sigmoid(x.data[half + i]));
  return { data, shape };
}

function layerNorm(x, weight, bias, eps) {
  const count = x.data.length;
  const centre = x.data.reduce((sum, value) => sum + value, 0) / count;
  const variance = x.data.reduce((sum, value) => sum + (value - centre) ** 2, 0) / count;
  const scale = 1 / Math.sqrt(variance + eps);
  const data = x.data.map((value, i) => (value - centre) * scale * (weight ? weight[i] : 1)
    + (bias ? bias[i] : 0));
  return { data, shape: x.shape };
}

// Means. The K outputs of an entry are stacked: output k of entry i is at k * count + i.

const entry = (values, i) => values[values.length === 1 ? 0 : i];

function positive(parameter, outputs, i, count) {
  if (parameter.values) return entry(parameter.values, i);
  return softplus(outputs[parameter.index * count + i]) + parameter.minimum;
}

function located(op, outputs, i) {
  const loc = op.sigmoid ? sigmoid(outputs[i]) : outputs[i];
  return entry(op.shift, i) + entry(op.unit, i) * loc;
}

function softmax(logits) {
  const top = Math.max(...logits), weights = logits.map((x) => Math.exp(x - top));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

function logisticMean(loc, scale, levels) { // the sum over k of P(level >= k)
  let sum = 0;
  for (let k = 1; k < levels; k++) sum += sigmoid((loc - (k - 0.5) / (levels - 1)) / scale);
  return sum / (levels - 1);
}

const outputsOf = (o, i, count, first, number) =>
  Array.from({ length: number }, (_, k) => o[(first + k) * count + i]);

const MEANS = {
  sigmoid: (o, i) => sigmoid(o[i]),
  continuous_bernoulli: (o, i) => {
    const x = o[i];
    return Math.abs(x) < 0.02 ? 0.5 + x / 12 - x ** 3 / 720 : 1 / -Math.expm1(-x) - 1 / x;
  },
  location: (o, i, count, op) => located(op, o, i),
  log_normal: (o, i, count, op) => {
    const scale = entry(op.scale_unit, i) * positive(op.scale, o, i, count);
    return Math.exp(located(op, o, i) + (scale * scale) / 2);
  },
  counts: (o, i, count, op, total) =>
    (op.total === null ? Math.exp(o[i]) : op.total * Math.exp(o[i] - total))
    * (op.gate === null ? 1 : sigmoid(-o[op.gate * count + i])),
  categorical: (o, i, count, op) =>
    softmax(outputsOf(o, i, count, 0, op.outputs)).reduce((sum, p, k) => sum + p * k * op.spacing, 0),
  discretized_logistic: (o, i, count, op) =>
    logisticMean(o[i], positive(op.scale, o, i, count), op.num_levels),
  discretized_logistic_mixture: (o, i, count, op) => {
    const parts = op.outputs / 3, weights = softmax(outputsOf(o, i, count, 0, parts));
    return weights.reduce((sum, weight, k) => {
      const loc = (k + 0.5) / parts + o[(parts + k) * count + i];
      const scale = softplus(o[(2 * parts + k) * count + i]) + op.minimum;
      return sum + weight * logisticMean(loc, scale, op.num_levels);
    }, 0);
  },
};

function mean({ data, shape }, op, shares) {
  const count = data.length / op.outputs, found = new Float32Array(count);
  const hasTotal = op.kind === "counts" && op.total !== null;
  const total = hasTotal ? logSumExp(data.subarray(0, count)) : 0;
  for (let i = 0; i < count; i++) {
    found[i] = MEANS[op.kind](data, i, count, op, total);
    if (op.kind === "categorical" && op.spacing === 1) {
      shares.set(i, softmax(outputsOf(data, i, count, 0, op.outputs)));
    }
  }
  return { data: found, shape: [shape[0] / op.outputs, ...shape.slice(1)] };
}

function logSumExp(values) {
  const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(values.reduce((sum, value) => sum + Math.exp(value - top), 0));
}

/** Return a function from z to { mean: Float32Array, shares: Map from entry to probabilities }. */
export function decoderOf(spec) {
  const numbers = arrayOf(spec.weights), tensors = [];
  let start = 0;
  for (const shape of spec.shapes) {
    const size = shape.reduce((a, b) => a * b, 1);
    tensors.push(numbers.subarray(start, start + size));
    start += size;
  }
  const tensor = (number) => (number === null ? null : tensors[number]);

  function columns(x, op, shares) {
    const found = [];
    let next = 0;
    op.blocks.forEach((layers, block) => {
      const local = new Map(), { data } = run(layers, x, local), start = next;
      const place = (i) => (op.positions ? op.positions[block][i] : start + i);
      data.forEach((value, i) => { found[place(i)] = value; });
      local.forEach((probabilities, i) => shares.set(place(i), probabilities));
      next += data.length;
    });
    return { data: Float32Array.from(found), shape: [next] };
  }

  function step(x, op, shares) {
    switch (op.op) {
      case "linear": return linear(x, tensor(op.weight), tensor(op.bias));
      case "conv": case "conv_transpose": return convolution(x, op, tensor(op.weight),
        tensor(op.bias), spec.shapes[op.weight].slice(2), op.op === "conv_transpose");
      case "upsample": return upsample(x, op);
      case "reshape": return { data: x.data, shape: op.shape };
      case "affine": return affine(x, tensor(op.scale), tensor(op.shift));
      case "glu": return glu(x, op.shape);
      case "layer_norm": return layerNorm(x, tensor(op.weight), tensor(op.bias), op.eps);
      case "residual": {
        const inner = run(op.layers, x, shares).data;
        const data = inner.map((value, i) => (value + x.data[i]) / op.divisor);
        return { data, shape: x.shape };
      }
      case "columns": return columns(x, op, shares);
      case "mean": return mean(x, op, shares);
      default: return { data: x.data.map((value) => FUNCTIONS[op.op](value, op)), shape: x.shape };
    }
  }

  const run = (layers, x, shares) => layers.reduce((value, op) => step(value, op, shares), x);

  return (z) => {
    const shares = new Map(), x = { data: Float32Array.from(z), shape: [z.length] };
    return { mean: run(spec.layers, x, shares).data, shares };
  };
}
