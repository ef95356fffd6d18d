// Cellular automata on typed arrays, equal to nca_lib's PyTorch (a test compares them). No DOM.
//
// States and images are Float32Arrays, channels last: number c of cell (y, x) is at (y * width + x) * channels + c.

import { FIRING } from "./noise.js";

// ---- Weights ------------------------------------------------------------------------------------------------------

// Base64 of little-endian float16 to Float32Array.
function halfFloats(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const half = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    numbers[i] = half >> 15 ? -size : size;
  }
  return numbers;
}

function tensorsOf(model) {
  return Object.fromEntries(Object.entries(model.tensors).map(([name, text]) => [name, halfFloats(text)]));
}

// ---- Dense layers at many cells -----------------------------------------------------------------------------------

const BLOCK = 16; // cells computed together: what they hold and the weights in use stay in the fastest cache

const fourfold = (n) => Math.ceil(n / 4) * 4;

// The order in which `dense` reads weights: four outputs side by side. `at(output, input)` gives them; outputs are
// padded with zeros to a multiple of four.
function tile(outputs, inputs, at, into = new Float32Array(fourfold(outputs) * inputs)) {
  for (let o = 0; o < outputs; o++) {
    for (let i = 0; i < inputs; i++) into[(o - (o & 3)) * inputs + 4 * i + (o & 3)] = at(o, i);
  }
  return into;
}

// y = W x + b at `cells` cells (an even number is computed), two cells and four outputs at a time so that each
// number read serves several products. Cell c reads x from c * inputs and writes y from c * stride + first.
function dense(x, inputs, weight, bias, y, outputs, stride, first, cells) {
  for (let o = 0; o < outputs; o += 4) {
    for (let c = 0; c < cells; c += 2) {
      let a0 = bias[o], a1 = bias[o + 1], a2 = bias[o + 2], a3 = bias[o + 3];
      let b0 = a0, b1 = a1, b2 = a2, b3 = a3;
      let p = c * inputs, q = p + inputs, k = o * inputs;
      for (let i = 0; i < inputs; i++) {
        const u = x[p++], v = x[q++];
        const w0 = weight[k], w1 = weight[k + 1], w2 = weight[k + 2], w3 = weight[k + 3];
        k += 4;
        a0 += u * w0;
        a1 += u * w1;
        a2 += u * w2;
        a3 += u * w3;
        b0 += v * w0;
        b1 += v * w1;
        b2 += v * w2;
        b3 += v * w3;
      }
      const r = c * stride + first + o, s = r + stride;
      y[r] = a0;
      y[r + 1] = a1;
      y[r + 2] = a2;
      y[r + 3] = a3;
      y[s] = b0;
      y[s + 1] = b1;
      y[s + 2] = b2;
      y[s + 3] = b3;
    }
  }
}

// Copy a state into the middle of one that is larger by a cell on each side, or back.
function copyRows(from, to, height, width, channels, fromPadded) {
  const inner = width * channels, outer = inner + 2 * channels;
  for (let y = 0; y < height; y++) {
    const padded = (y + 1) * outer + channels, plain = y * inner;
    if (fromPadded) to.set(from.subarray(padded, padded + inner), plain);
    else to.set(from.subarray(plain, plain + inner), padded);
  }
}

// ---- The growing automaton: nca_lib/automaton.py ------------------------------------------------------------------

const ALPHA = 3;

class GrowingNCA {
  constructor(model) {
    const { channels, hidden } = model, weights = tensorsOf(model);
    const wide = fourfold(hidden);
    this.channels = channels;
    this.wide = wide;
    this.probability = Math.fround(model.update_probability);
    // PyTorch's perception holds (itself, d/dx, d/dy) by channel; here all channels, then all d/dx, then all d/dy.
    const theirs = (i) => (i % channels) * 3 + Math.floor(i / channels);
    this.widen = tile(hidden, 3 * channels, (o, i) => weights["widen.weight"][o * 3 * channels + theirs(i)]);
    this.widenBias = new Float32Array(wide);
    this.widenBias.set(weights["widen.bias"]);
    this.narrow = tile(channels, wide, (o, i) => (i < hidden ? weights["narrow.weight"][o * hidden + i] : 0));
    this.zeros = new Float32Array(fourfold(channels));
    this.seen = new Float32Array(BLOCK * 3 * channels);
    this.middle = new Float32Array(BLOCK * wide);
    this.update = new Float32Array(BLOCK * fourfold(channels));
  }

  // Empty but for one cell in the middle.
  seed(height, width) {
    const state = new Float32Array(height * width * this.channels);
    const middle = ((height >> 1) * width + (width >> 1)) * this.channels;
    state.fill(1, middle + ALPHA, middle + this.channels);
    return state;
  }

  // Make `steps` steps in place; `first` is the number of the first, which addresses the firing masks.
  run(state, height, width, steps, noise, first = 0) {
    const size = (height + 2) * (width + 2);
    let now = new Float32Array(size * this.channels), next = new Float32Array(size * this.channels);
    const alive = new Uint8Array(size), reached = new Uint8Array(size), cells = new Int32Array(size);
    copyRows(state, now, height, width, this.channels, false);
    for (let step = first; step < first + steps; step++) {
      this.spread(height, width, (cell) => now[cell * this.channels + ALPHA] > 0.1, alive);
      // Beyond the neighbours of the living all is 0 and stays 0: no need to compute it.
      this.spread(height, width, (cell) => alive[cell], reached);
      let count = 0;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const cell = (y + 1) * (width + 2) + x + 1;
          if (reached[cell] && noise.uniform(y, x, FIRING, 0, step) < this.probability) cells[count++] = cell;
        }
      }
      next.set(now);
      for (let begin = 0; begin < count; begin += BLOCK) {
        this.fire(now, next, cells, begin, Math.min(BLOCK, count - begin), width + 2);
      }
      this.spread(height, width, (cell) => next[cell * this.channels + ALPHA] > 0.1, reached);
      for (let cell = 0; cell < size; cell++) {
        if (!(alive[cell] && reached[cell])) next.fill(0, cell * this.channels, (cell + 1) * this.channels);
      }
      [now, next] = [next, now];
    }
    copyRows(now, state, height, width, this.channels, true);
  }

  // Mark the cells that hold `is`, and their neighbours.
  spread(height, width, is, marks) {
    marks.fill(0);
    const row = width + 2;
    for (let y = 1; y <= height; y++) {
      for (let cell = y * row + 1; cell <= y * row + width; cell++) {
        if (!is(cell)) continue;
        for (let beside = cell - row; beside <= cell + row; beside += row) {
          marks[beside - 1] = marks[beside] = marks[beside + 1] = 1;
        }
      }
    }
    for (let cell = 0; cell < marks.length; cell++) { // the border is no cell
      const x = cell % row;
      if (cell < row || cell >= (height + 1) * row || x === 0 || x === width + 1) marks[cell] = 0;
    }
  }

  fire(now, next, cells, begin, count, row) {
    const { channels, wide, seen, middle, update } = this, down = row * channels;
    for (let b = 0; b < count; b++) {
      for (let c = 0, p = cells[begin + b] * channels, q = b * 3 * channels; c < channels; c++, p++, q++) {
        const nw = now[p - down - channels], n = now[p - down], ne = now[p - down + channels];
        const sw = now[p + down - channels], s = now[p + down], se = now[p + down + channels];
        seen[q] = now[p];
        seen[q + channels] = (ne - nw + 2 * (now[p + channels] - now[p - channels]) + se - sw) / 8;
        seen[q + 2 * channels] = (sw - nw + 2 * (s - n) + se - ne) / 8;
      }
    }
    const narrow = fourfold(channels);
    dense(seen, 3 * channels, this.widen, this.widenBias, middle, wide, wide, 0, count);
    for (let i = 0; i < count * wide; i++) if (middle[i] < 0) middle[i] = 0;
    dense(middle, wide, this.narrow, this.zeros, update, narrow, narrow, 0, count);
    for (let b = 0; b < count; b++) {
      const p = cells[begin + b] * channels;
      for (let c = 0; c < channels; c++) next[p + c] += update[b * narrow + c];
    }
  }
}

// ---- Diff-NCA without position: nca_lib/diff_nca.py ---------------------------------------------------------------

// Four numbers for each scalar; see `lift` there.
function lift(scalars, encoding) {
  return scalars.flatMap((s, i) => {
    const waves = (a, b) => [Math.cos(a), Math.cos(b), Math.sin(a), Math.sin(b)];
    if (encoding === "reference") return waves(i, i / 100).map((wave) => s * wave);
    return waves((Math.PI / 2) * s, 4 * Math.PI * s);
  });
}

class DiffNCA {
  constructor(model) {
    Object.assign(this, {
      channels: model.channels, hidden: model.hidden, steps: model.steps, images: model.image_channels,
      encoding: model.encoding, probability: Math.fround(model.update_probability), weights: tensorsOf(model),
      told: model.context_channels ?? 0, context: null, // context: what cells are told, zeros if null
    });
    const { channels, hidden, weights } = this, around = channels + 4; // 4: channels of the embedding
    // As the image, the context is never written: after image and prediction.
    const first = 2 * this.images;
    weights["narrow.weight"].fill(0, first * hidden, (first + this.told) * hidden);
    weights["narrow.bias"].fill(0, first, first + this.told);
    this.perceived = fourfold(channels);
    this.wide = fourfold(hidden);
    this.updates = fourfold(channels - this.images); // the image is never written
    // A patch is three rows of three cells, so that its rows are copied whole.
    const at = (o, i) => (o * around + (i % channels)) * 9 + Math.floor(i / channels);
    this.perception = tile(channels, 9 * channels, (o, i) => weights["perception.weight"][at(o, i)]);
    this.perceptionBias = new Float32Array(this.perceived);
    this.widen = new Float32Array(this.wide * (channels + this.perceived));
    this.widenBias = new Float32Array(this.wide);
    this.narrow = new Float32Array(this.updates * this.wide);
    this.zeros = new Float32Array(this.updates);
    this.patch = new Float32Array(BLOCK * 9 * channels);
    this.seen = new Float32Array(BLOCK * (channels + this.perceived));
    this.middle = new Float32Array(BLOCK * this.wide);
    this.scale = new Float32Array(BLOCK);
    this.update = new Float32Array(BLOCK * this.updates);
  }

  // A small net of two layers at one vector.
  net(name, input) {
    const layer = (place, x) => {
      const weight = this.weights[`${name}.${place}.weight`], bias = [...this.weights[`${name}.${place}.bias`]];
      return bias.map((b, o) => x.reduce((sum, v, i) => sum + v * weight[o * x.length + i], b));
    };
    return layer(2, layer(0, input).map((h) => h / (1 + Math.exp(-h))));
  }

  // What a step's time does to the weights, as functions of (output, input), and biases: embedding channels become biases,
  // both modulations factors. The mean that the norm subtracts from the hidden layer is linear in its input: it goes into
  // the weights too.
  folded(time, step) {
    const { channels, hidden, weights } = this, around = channels + 4, inputs = 2 * channels + 4;
    const perceptionBias = new Float32Array(channels), widenBias = new Float32Array(hidden);
    const [perception, widen, narrow] = ["perception", "widen", "narrow"].map((name) => weights[`${name}.weight`]);
    const embedding = this.net("embedding", lift([time, step], this.encoding));
    const ones = (count) => new Array(count).fill(1), modulated = "modulate_seen.0.weight" in weights;
    const bySeen = modulated ? this.net("modulate_seen", embedding) : ones(inputs);
    const byHidden = modulated ? this.net("modulate_hidden", embedding) : ones(hidden);
    for (let o = 0; o < channels; o++) {
      let bias = weights["perception.bias"][o];
      for (let i = 0; i < 36; i++) bias += perception[(o * around + channels) * 9 + i] * embedding[Math.floor(i / 9)];
      perceptionBias[o] = bias;
    }
    const mean = new Float64Array(inputs);
    for (let i = 0; i < hidden * inputs; i++) mean[i % inputs] += widen[i] / hidden;
    const meanBias = weights["widen.bias"].reduce((sum, b) => sum + b / hidden, 0);
    const centred = (o, i) => (widen[o * inputs + i] - mean[i]) * bySeen[i];
    for (let o = 0; o < hidden; o++) {
      widenBias[o] = weights["widen.bias"][o] - meanBias;
      for (let e = 0; e < 4; e++) widenBias[o] += centred(o, channels + e) * embedding[e];
    }
    const widened = (o, i) => (i < 2 * channels ? centred(o, i < channels ? i : i + 4) : 0);
    const narrowed = (o, i) => (i < hidden ? narrow[(o + this.images) * hidden + i] * byHidden[i] : 0);
    return { perceptionBias, widenBias, widened, narrowed };
  }

  fold(time, step) {
    const { perceptionBias, widenBias, widened, narrowed } = this.folded(time, step);
    this.perceptionBias.set(perceptionBias);
    this.widenBias.set(widenBias);
    tile(this.hidden, this.channels + this.perceived, widened, this.widen);
    tile(this.channels - this.images, this.wide, narrowed, this.narrow);
  }

  fires(y, x, time, k, noise) {
    return this.probability === 1 || noise.uniform(y, x, FIRING, Math.round(time * 2 ** 20), k) < this.probability;
  }

  // What the network says about `noisy` at `time` = t/T; `noise` gives the firing masks.
  forward(noisy, height, width, time, noise) {
    let last;
    for (last of this.states(noisy, height, width, time, noise));
    return this.part(last, height, width, this.images, 2 * this.images);
  }

  // The state before the first step: image, zeros for the prediction, context, zeros.
  seed(noisy, height, width) {
    const { channels, images, told, context } = this, state = new Float32Array(height * width * channels);
    for (let cell = 0; cell < height * width; cell++) {
      for (let c = 0; c < images; c++) state[cell * channels + c] = noisy[cell * images + c];
      for (let c = 0; context && c < told; c++) state[cell * channels + 2 * images + c] = context[cell * told + c];
    }
    return state;
  }

  // The state after each of the K steps, larger by a cell on each side; what is yielded is used again.
  *states(noisy, height, width, time, noise) {
    const { channels } = this, size = (height + 2) * (width + 2), cells = new Int32Array(height * width);
    let now = new Float32Array(size * channels), next = new Float32Array(size * channels);
    copyRows(this.seed(noisy, height, width), now, height, width, channels, false);
    for (let k = 0; k < this.steps; k++) {
      this.fold(time, k / this.steps);
      this.reflect(now, height, width);
      let count = 0;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          if (this.fires(y, x, time, k, noise)) cells[count++] = (y + 1) * (width + 2) + x + 1;
        }
      }
      next.set(now);
      for (let begin = 0; begin < count; begin += BLOCK) {
        this.fire(now, next, cells, begin, Math.min(BLOCK, count - begin), width + 2);
      }
      [now, next] = [next, now];
      yield now;
    }
  }

  // Channels `from` to `to` of a state that is larger by a cell on each side.
  part(state, height, width, from, to) {
    const count = to - from, values = new Float32Array(height * width * count);
    for (let cell = 0; cell < height * width; cell++) {
      const there = ((Math.floor(cell / width) + 1) * (width + 2) + (cell % width) + 1) * this.channels;
      for (let c = 0; c < count; c++) values[cell * count + c] = state[there + from + c];
    }
    return values;
  }

  // Beyond the border lies what lies one cell within it.
  reflect(state, height, width) {
    const { channels } = this, row = (width + 2) * channels;
    for (let y = 1; y <= height; y++) {
      const left = y * row, right = left + row - channels;
      state.copyWithin(left, left + 2 * channels, left + 3 * channels);
      state.copyWithin(right, right - 2 * channels, right - channels);
    }
    state.copyWithin(0, 2 * row, 3 * row);
    state.copyWithin((height + 1) * row, (height - 1) * row, height * row);
  }

  fire(now, next, cells, begin, count, row) {
    const { channels, images, perceived, wide, updates, patch, seen, middle, update } = this;
    const inputs = channels + perceived, three = 3 * channels;
    for (let b = 0; b < count; b++) {
      const cell = cells[begin + b] * channels;
      for (let line = 0; line < 3; line++) {
        const from = cell + (line - 1) * row * channels - channels, to = (3 * b + line) * three;
        for (let i = 0; i < three; i++) patch[to + i] = now[from + i];
      }
      for (let c = 0; c < channels; c++) seen[b * inputs + c] = now[cell + c];
    }
    dense(patch, 3 * three, this.perception, this.perceptionBias, seen, perceived, inputs, channels, count);
    dense(seen, inputs, this.widen, this.widenBias, middle, wide, wide, 0, count);
    for (let b = 0; b < count; b++) {
      let square = 0;
      for (let i = b * wide; i < (b + 1) * wide; i++) {
        const h = middle[i];
        square += h * h;
        if (h < 0) middle[i] = 0.01 * h; // leaky ReLU, which lets the division by the deviation wait
      }
      this.scale[b] = 1 / Math.sqrt(square / this.hidden + 1e-5);
    }
    dense(middle, wide, this.narrow, this.zeros, update, updates, updates, 0, count);
    const bias = this.weights["narrow.bias"];
    for (let b = 0; b < count; b++) {
      const to = cells[begin + b] * channels + images, from = b * updates, scale = this.scale[b];
      for (let c = 0; c < channels - images; c++) next[to + c] += scale * update[from + c] + bias[images + c];
    }
  }
}

// ---- The dense network of chapter 2: MLP in nca_lib/diffusion.py --------------------------------------------------

class MLP {
  constructor(model) {
    const weights = tensorsOf(model);
    this.images = model.image_channels;
    this.layers = [0, 2, 4, 6].map((n) => {
      const weight = weights[`layers.${n}.weight`], bias = weights[`layers.${n}.bias`], inputs = weight.length / bias.length;
      const padded = new Float32Array(fourfold(bias.length));
      padded.set(bias);
      return { inputs, outputs: padded.length, bias: padded, weight: tile(bias.length, inputs, (o, i) => weight[o * inputs + i]) };
    });
  }

  forward(noisy, height, width, time) {
    const cells = height * width, values = noisy.length, input = new Float32Array(values + 16);
    const theirs = (i) => (i % this.images) * cells + Math.floor(i / this.images); // channels first
    for (let i = 0; i < values; i++) input[theirs(i)] = noisy[i];
    for (let k = 0; k < 8; k++) {
      const angle = Math.fround(time * Math.fround((Math.PI / 2) * 2 ** k));
      input[values + k] = Math.sin(angle);
      input[values + 8 + k] = Math.cos(angle);
    }
    // `dense` computes two cells at a time: here one of them is no cell.
    let x = input;
    this.layers.forEach(({ inputs, outputs, bias, weight }, n) => {
      const two = new Float32Array(2 * inputs), y = new Float32Array(2 * outputs);
      two.set(x.subarray(0, inputs));
      dense(two, inputs, weight, bias, y, outputs, outputs, 0, 1);
      x = n < 3 ? y.subarray(0, outputs).map((h) => h / (1 + Math.exp(-h))) : y;
    });
    return Float32Array.from(noisy, (_, i) => x[theirs(i)]);
  }
}

export { DiffNCA, GrowingNCA, MLP, halfFloats };
