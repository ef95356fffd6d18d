// Randomness addressed by coordinate, equal to nca_lib/noise.py. No dependencies.

const START = 0, SAMPLER = 1, FIRING = 2, CONTEXT = 3; // what a random number is for

function highWord(a, b) { // of the 64-bit product of two 32-bit words
  const ah = a >>> 16, al = a & 0xffff, bh = b >>> 16, bl = b & 0xffff;
  const middle = ah * bl + ((al * bl) >>> 16);
  return ah * bh + (middle >>> 16) + ((al * bh + (middle & 0xffff)) >>> 16);
}

// Philox4x32-10 (Salmon et al. 2011): four 32-bit words of a counter and two of a key to four words, put in `out`.
function philox(c0, c1, c2, c3, k0, k1, out) {
  for (let round = 0; round < 10; round++) {
    const high0 = highWord(0xd2511f53, c0), low0 = Math.imul(0xd2511f53, c0);
    const high1 = highWord(0xcd9e8d57, c2), low1 = Math.imul(0xcd9e8d57, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

// Each number is computed from its address: seed, sample, purpose, step, substep, y, x.
class CounterNoise {
  constructor(seed, y = 0, x = 0, sample = 0) {
    this.seed = seed | 0;
    this.sample = sample;
    this.y = y;
    this.x = x;
    this.words = new Uint32Array(4);
  }

  wordsAt(y, x, purpose, step, block) {
    philox(x + this.x, y + this.y, step, (purpose << 24) | block, this.seed, this.sample, this.words);
    return this.words;
  }

  // Uniform in [0, 1) with 24 bits, for one cell.
  uniform(y, x, purpose, step, substep) {
    return (this.wordsAt(y, x, purpose, step, substep >> 2)[substep & 3] >>> 8) * 2 ** -24;
  }

  // Standard normal (Box-Muller): height * width * channels numbers.
  normal(height, width, channels, purpose, step) {
    const numbers = new Float32Array(height * width * channels), four = new Float32Array(4);
    const open = (word) => Math.fround(Math.fround(word) + 0.5) * 2 ** -32;
    for (let cell = 0; cell < height * width; cell++) {
      for (let block = 0; 4 * block < channels; block++) {
        const words = this.wordsAt(Math.floor(cell / width), cell % width, purpose, step, block);
        for (let i = 0; i < 4; i += 2) {
          const radius = Math.sqrt(-2 * Math.log(Math.min(open(words[i]), 1 - 2 ** -24)));
          four[i] = radius * Math.cos(2 * Math.PI * open(words[i + 1]));
          four[i + 1] = radius * Math.sin(2 * Math.PI * open(words[i + 1]));
        }
        const first = cell * channels + 4 * block, count = Math.min(4, channels - 4 * block);
        for (let i = 0; i < count; i++) numbers[first + i] = four[i];
      }
    }
    return numbers;
  }
}

export { CONTEXT, CounterNoise, FIRING, SAMPLER, START, philox };
