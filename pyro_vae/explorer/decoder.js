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

function mapped(values, op) {
  const f = FUNCTIONS[op.op], found = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) found[i] = f(values[i], op);
  return found;
}

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

/** Return the source of each output place and kernel entry along one side, -1 for the padding. */
function sources(count, size, kernel, stride, padding, dilation, transposed) {
  const found = new Int32Array(count * kernel);
  for (let place = 0, at = 0; place < count; place++) {
    for (let k = 0; k < kernel; k++, at++) {
      const on = transposed ? (place + padding - k * dilation) / stride
        : place * stride - padding + k * dilation;
      found[at] = on >= 0 && on < size && Number.isInteger(on) ? on : -1;
    }
  }
  return found;
}

/** Return the patch of each pixel of the output, one after the other: channels x kernel. */
function patchesOf(x, op, [kh, kw], transposed) {
  const [channels, height, width] = x.shape, [, rows, columns] = op.shape, source = x.data;
  const found = new Float32Array(rows * columns * channels * kh * kw);
  const ys = sources(rows, height, kh, op.stride[0], op.padding[0], op.dilation[0], transposed);
  const xs = sources(columns, width, kw, op.stride[1], op.padding[1], op.dilation[1], transposed);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      for (let c = 0; c < channels; c++) {
        for (let ky = 0; ky < kh; ky++) {
          const y = ys[row * kh + ky], from = (c * height + y) * width;
          for (let kx = 0; kx < kw; kx++, at++) {
            const on = xs[column * kw + kx];
            if (y >= 0 && on >= 0) found[at] = source[from + on];
          }
        }
      }
    }
  }
  return found;
}

/** Return products of rows: found[i, j] = sum_k a[i, k] b[j, k] + bias[i], in blocks of 4 x 2. */
function products(a, b, size, bias) {
  const rows = a.length / size, columns = b.length / size;
  const found = new Float32Array(rows * columns);
  const dot = (i, j) => {
    let sum = 0;
    for (let k = 0; k < size; k++) sum += a[i * size + k] * b[j * size + k];
    return sum;
  };
  const last = rows - (rows % 4), end = columns - (columns % 2);
  for (let i = 0; i < last; i += 4) {
    const a0 = i * size, a1 = a0 + size, a2 = a1 + size, a3 = a2 + size;
    for (let j = 0; j < end; j += 2) {
      const b0 = j * size, b1 = b0 + size;
      let s00 = 0, s10 = 0, s20 = 0, s30 = 0, s01 = 0, s11 = 0, s21 = 0, s31 = 0;
      for (let k = 0; k < size; k++) {
        const u = b[b0 + k], v = b[b1 + k], p = a[a0 + k], q = a[a1 + k], r = a[a2 + k], t = a[a3 + k];
        s00 += p * u;
        s10 += q * u;
        s20 += r * u;
        s30 += t * u;
        s01 += p * v;
        s11 += q * v;
        s21 += r * v;
        s31 += t * v;
      }
      const at = i * columns + j;
      found[at] = s00; found[at + 1] = s01;
      found[at + columns] = s10; found[at + columns + 1] = s11;
      found[at + 2 * columns] = s20; found[at + 2 * columns + 1] = s21;
      found[at + 3 * columns] = s30; found[at + 3 * columns + 1] = s31;
    }
  }
  for (let i = 0; i < rows; i++) {
    for (let j = i < last ? end : 0; j < columns; j++) found[i * columns + j] = dot(i, j);
    if (bias) for (let j = 0; j < columns; j++) found[i * columns + j] += bias[i];
  }
  return found;
}

/** Return the kernels of a transposed convolution as one row for each output channel. */
function transposedKernels(weight, [inner, outer, ...kernel]) {
  const found = new Float32Array(weight.length), entries = kernel[0] * kernel[1];
  for (let i = 0, at = 0; i < inner; i++) {
    for (let o = 0; o < outer; o++) {
      for (let k = 0; k < entries; k++, at++) found[(o * inner + i) * entries + k] = weight[at];
    }
  }
  return found;
}

/** A convolution, or with transposed = true its adjoint, as a product of kernels and patches. */
function convolution(x, op, kernels, bias, kernel, transposed) {
  const patches = patchesOf(x, op, kernel, transposed);
  const data = products(kernels, patches, x.shape[0] * kernel[0] * kernel[1], bias);
  return { data, shape: op.shape };
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

/** Call visit(layer) for each layer, those in residual blocks and columns too. */
function eachLayer(layers, visit) {
  for (const layer of layers) {
    visit(layer);
    for (const inner of [layer.layers, ...(layer.blocks ?? [])]) eachLayer(inner ?? [], visit);
  }
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
  eachLayer(spec.layers, ({ op, weight }) => {
    if (op === "conv_transpose") {
      tensors[weight] = transposedKernels(tensors[weight], spec.shapes[weight]);
    }
  });

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
      case "first": return { data: x.data.subarray(0, op.shape[0]), shape: op.shape };
      case "affine": return affine(x, tensor(op.scale), tensor(op.shift));
      case "glu": return glu(x, op.shape);
      case "layer_norm": return layerNorm(x, tensor(op.weight), tensor(op.bias), op.eps);
      case "residual": {
        const inner = run(op.layers, x, shares).data;
        const data = new Float32Array(inner.length);
        for (let i = 0; i < data.length; i++) data[i] = (inner[i] + x.data[i]) / op.divisor;
        return { data, shape: x.shape };
      }
      case "columns": return columns(x, op, shares);
      case "mean": return mean(x, op, shares);
      default: return { data: mapped(x.data, op), shape: x.shape };
    }
  }

  const run = (layers, x, shares) => layers.reduce((value, op) => step(value, op, shares), x);

  return (z) => {
    const shares = new Map(), x = { data: Float32Array.from(z), shape: [z.length] };
    return { mean: run(spec.layers, x, shares).data, shares };
  };
}
