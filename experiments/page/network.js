// What the page computes: the image that the network sees, and what the network makes of it.
//
// The first half does what jaxrnn computes, the second what experiments/predict.py does to an image.
// Images are arrays of rows.
"use strict";

// ---- The network ------------------------------------------------------------------------------

const ACTIVATIONS = {
  tanh: Math.tanh,
  relu: (x) => Math.max(x, 0),
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
  soft_sign: (x) => x / (1 + Math.abs(x)),
  elu: (x) => (x > 0 ? x : Math.expm1(x)),
  leaky_relu: (x) => (x > 0 ? x : 0.01 * x),
  hard_sigmoid: (x) => Math.min(Math.max(x / 6 + 0.5, 0), 1),
  identity: (x) => x,
};
const { tanh, sigmoid } = ACTIVATIONS;

/** Adds x·kernel to z in the given columns. The kernel is [x.length, z.length], row after row. */
function addProduct(z, x, kernel, first = 0, end = z.length) {
  for (let i = 0; i < x.length; i++) {
    if (x[i] === 0) continue; // as most pixels are
    const row = i * z.length;
    for (let j = first; j < end; j++) z[j] += x[i] * kernel[row + j];
  }
}

/** Returns x·kernel + bias. */
function affine(x, kernel, bias) {
  const z = Float64Array.from(bias);
  addProduct(z, x, kernel);
  return z;
}

/** The cells: functions of the network, a layer's parameters, its state and a row to a state. */
const STEPS = {
  // h' = activation(x·U + b + h·W)
  rnn(network, layer, { hidden }, x) {
    const z = affine(x, layer.kernel, layer.bias);
    addProduct(z, hidden, layer.recurrent_kernel);
    return { hidden: z.map(ACTIVATIONS[network.activation]) };
  },

  // The gates i, f, g and o side by side; c' = f∘c + i∘g, h' = o∘activation(c').
  lstm(network, layer, state, x) {
    const activation = ACTIVATIONS[network.activation];
    const size = state.cell.length;
    const clip = network.cell_clip ?? Infinity;
    const z = affine(x, layer.kernel, layer.bias);
    addProduct(z, state.hidden, layer.recurrent_kernel);
    const hidden = new Float64Array(size);
    const cell = new Float64Array(size);
    for (let j = 0; j < size; j++) {
      const peep = (gate, c) => (layer.peephole ? layer.peephole[gate * size + j] * c : 0);
      const i = sigmoid(z[j] + peep(0, state.cell[j]));
      const f = sigmoid(z[size + j] + peep(1, state.cell[j]));
      const g = activation(z[2 * size + j]);
      cell[j] = Math.min(Math.max(f * state.cell[j] + i * g, -clip), clip);
      const o = sigmoid(z[3 * size + j] + peep(2, cell[j]));
      hidden[j] = o * activation(cell[j]);
    }
    return { hidden, cell };
  },

  // The gates r, z and n side by side; h' = (1 - z)∘n + z∘h. With a recurrent bias the reset gate
  // is applied after the recurrent product of n, and otherwise before it.
  gru(network, layer, { hidden }, x) {
    const size = hidden.length;
    const drive = affine(x, layer.kernel, layer.bias);
    const past = new Float64Array(3 * size);
    addProduct(past, hidden, layer.recurrent_kernel, 0, 2 * size);
    const reset = hidden.map((_, j) => sigmoid(drive[j] + past[j]));
    const read = layer.recurrent_bias ? hidden : hidden.map((h, j) => reset[j] * h);
    addProduct(past, read, layer.recurrent_kernel, 2 * size);
    return {
      hidden: hidden.map((h, j) => {
        const z = sigmoid(drive[size + j] + past[size + j]);
        let recurrent = past[2 * size + j];
        if (layer.recurrent_bias) recurrent = reset[j] * (recurrent + layer.recurrent_bias[j]);
        const n = tanh(drive[2 * size + j] + recurrent);
        return n + z * (h - n);
      }),
    };
  },
};

/** Returns the output of a layer after each of the rows. */
function runLayer(network, layer, rows) {
  let state = layer.initial_state;
  return rows.map((row) => {
    state = STEPS[network.kind](network, layer, state, row);
    return state.hidden;
  });
}

/** Returns the output of the last layer at each of the rows. */
function runStack(network, rows) {
  for (const [forward, backward] of network.layers) {
    let outputs = runLayer(network, forward, rows);
    if (backward) {
      const reversed = runLayer(network, backward, rows.toReversed()).toReversed();
      outputs = outputs.map((output, t) => Float64Array.of(...output, ...reversed[t]));
    }
    if (network.residual && outputs[0].length === rows[0].length) {
      outputs = outputs.map((output, t) => output.map((value, j) => value + rows[t][j]));
    }
    rows = outputs;
  }
  return rows;
}

/** Returns the class probabilities after each row of an image, of pixels in 0..255. */
function beliefs(network, image) {
  const rows = image.map((row) => Float64Array.from(row, (pixel) => pixel / 255));
  const classify = (output) =>
    softmax(affine(output, network.readout.kernel, network.readout.bias));
  if (network.layers[0].length === 1) return runStack(network, rows).map(classify);
  // The backward direction starts at the last row that was read, and so begins anew at each row.
  return rows.map((_, t) => {
    const outputs = runStack(network, rows.slice(0, t + 1));
    const half = outputs[0].length / 2;
    return classify(Float64Array.of(...outputs[t].slice(0, half), ...outputs[0].slice(half)));
  });
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power);
  return Array.from(powers, (power) => power / sum);
}

/** Replaces each [start, end] in the description of a network by that part of its weights. */
function unpack(part, weights) {
  if (Array.isArray(part) && part.length === 2 && part.every(Number.isInteger)) {
    return weights.subarray(...part);
  }
  if (part === null || typeof part !== "object") return part;
  if (Array.isArray(part)) return part.map((each) => unpack(each, weights));
  return Object.fromEntries(Object.entries(part).map(([key, each]) => [key, unpack(each, weights)]));
}

/** Returns the numbers that are stored in base64 as little-endian float32, or float16. */
function decode(text, dtype) {
  const bytes = bytesOf(text);
  const view = new DataView(bytes.buffer);
  const size = dtype === "float16" ? 2 : 4;
  return Float32Array.from({ length: bytes.length / size }, (_, i) =>
    size === 4 ? view.getFloat32(4 * i, true) : fromHalf(view.getUint16(2 * i, true)),
  );
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function fromHalf(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// ---- The image --------------------------------------------------------------------------------

const SIDE = 28; // of the image that the network reads
const BOX = 20; // side of the square to which the ink is scaled
const FAINTEST = 0.1; // of the strongest ink; less is the soft edge of a stroke

/**
 * Returns ink in the style of MNIST's images: scaled to fit a square of 20 pixels, and placed with
 * its center of mass in the middle.
 *
 * @param ink The amount of ink at each pixel, rows of numbers in [0, 1].
 * @returns Rows of 28 pixels in 0..255, or null if there is no ink.
 */
function mnistStyle(ink) {
  ink = cropped(withoutDust(ink));
  if (!ink) return null;
  let longest = Math.max(ink.length, ink[0].length);
  if (Math.abs(longest - BOX) <= 2) longest = BOX; // resampling would blur it
  const height = Math.max(1, roundToEven((BOX * ink.length) / longest));
  const width = Math.max(1, roundToEven((BOX * ink[0].length) / longest));
  const small = transposed(resized(transposed(resized(ink, width)), height));
  // Not the maximum, which a thin stroke reaches at a crossing only, so the rest would be dim.
  const largest = Math.max(...small.flat());
  const full = percentile(small.flat().filter((value) => value > largest / 2), 0.9);
  const bright = small.map((row) => row.map((value) => clamp(value / full, 0, 1)));
  // The center of symmetric ink lies between two pixels, where the last bits must not decide.
  const place = (rows, size) => {
    const start = roundToEven(1000 * (SIDE / 2 - centerOf(rows))) / 1000;
    return clamp(roundToEven(start), 0, SIDE - size);
  };
  const top = place(bright, height);
  const left = place(transposed(bright), width);
  const image = blankImage();
  bright.forEach((row, y) => {
    row.forEach((value, x) => (image[top + y][left + x] = roundToEven(255 * value)));
  });
  return image;
}

function blankImage() {
  return Array.from({ length: SIDE }, () => new Array(SIDE).fill(0));
}

/** Removes faint ink, and connected parts of at most 2 % of the size of the largest. */
function withoutDust(ink) {
  const height = ink.length;
  const width = ink[0].length;
  const strong = (y, x) => ink[y]?.[x] > FAINTEST;
  const part = ink.map((row) => new Int32Array(row.length)); // of each pixel, 0 where there is none
  const sizes = [0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!strong(y, x) || part[y][x]) continue;
      const number = sizes.push(0) - 1;
      const waiting = [[y, x]];
      part[y][x] = number;
      while (waiting.length) {
        const [row, column] = waiting.pop();
        if (ink[row][column] > 0.3) sizes[number] += 1;
        for (let v = row - 1; v <= row + 1; v++) {
          for (let u = column - 1; u <= column + 1; u++) {
            if (!strong(v, u) || part[v][u]) continue;
            part[v][u] = number;
            waiting.push([v, u]);
          }
        }
      }
    }
  }
  const least = 0.02 * Math.max(...sizes);
  return ink.map((row, y) =>
    Array.from(row, (value, x) => (sizes[part[y][x]] > least ? value : 0)),
  );
}

/** Returns the smallest rectangle with all ink, or null if there is none. */
function cropped(ink) {
  const any = (row) => row.some((value) => value !== 0);
  const columns = transposed(ink);
  const top = ink.findIndex(any);
  if (top < 0) return null;
  const [bottom, left, right] = [ink.findLastIndex(any), columns.findIndex(any), columns.findLastIndex(any)];
  return ink.slice(top, bottom + 1).map((row) => row.slice(left, right + 1));
}

/** Resizes each row to a width by Pillow's bicubic filter, which widens where it reduces. */
function resized(rows, width) {
  const scale = rows[0].length / width;
  const stretch = Math.max(scale, 1);
  const weights = Array.from({ length: width }, (_, x) => {
    const center = (x + 0.5) * scale;
    const first = Math.max(Math.floor(center - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.floor(center + 2 * stretch + 0.5), rows[0].length);
    const found = [];
    for (let u = first; u < end; u++) found.push(bicubic((u - center + 0.5) / stretch));
    const sum = found.reduce((total, weight) => total + weight);
    return { first, values: found.map((weight) => weight / sum) };
  });
  return rows.map((row) =>
    weights.map(({ first, values }) =>
      values.reduce((total, weight, k) => total + weight * row[first + k], 0),
    ),
  );
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Returns the center of mass of the rows. */
function centerOf(rows) {
  const masses = rows.map((row) => row.reduce((total, value) => total + value));
  const moment = masses.reduce((total, mass, y) => total + mass * y, 0);
  return moment / masses.reduce((total, mass) => total + mass);
}

function percentile(values, share) {
  values = values.toSorted((one, other) => one - other);
  const index = share * (values.length - 1);
  const low = Math.floor(index);
  const high = Math.min(low + 1, values.length - 1);
  return values[low] + (index - low) * (values[high] - values[low]);
}

function transposed(rows) {
  return Array.from({ length: rows[0].length }, (_, x) => rows.map((row) => row[x]));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Rounds as Python does: halves to the even neighbor. */
function roundToEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
