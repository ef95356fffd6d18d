// Two levels of a cascade, equal to nca_lib/cascade.py: the coarse one draws a layout anew, the fine one is told it. No DOM.

import { CONTEXT, CounterNoise } from "./noise.js";
import { Drawing, ofLevel } from "./way.js";

const SEEDS = 0x9e3779b9; // between the seeds of two levels

// As coarse_context there: a coarse image, noised by a known amount, enlarged, and the amount. Channels last.
function coarseContext(coarse, height, width, channels, factor, amount, noise) {
  const left = Math.sqrt(1 - amount * amount), noised = coarse.map((v, i) => left * v + amount * noise[i]);
  const told = new Float32Array(height * width * factor * factor * (channels + 1));
  const between = (fine, count) => { // bilinear: the two cells on whose line a place lies, and the second one's part
    const place = Math.max(0, (fine + 0.5) / factor - 0.5), first = Math.floor(place);
    return [first, Math.min(first + 1, count - 1), place - first];
  };
  let to = 0;
  for (let j = 0; j < height * factor; j++) {
    const [top, bottom, down] = between(j, height);
    for (let i = 0; i < width * factor; i++) {
      const [west, east, across] = between(i, width);
      const at = (y, x, c) => noised[(y * width + x) * channels + c];
      for (let c = 0; c < channels; c++) {
        told[to++] = (1 - down) * ((1 - across) * at(top, west, c) + across * at(top, east, c)) +
          down * ((1 - across) * at(bottom, west, c) + across * at(bottom, east, c));
      }
      told[to++] = amount;
    }
  }
  return told;
}

class Cascade extends Drawing {
  constructor(below, level, factor, amount) {
    super();
    Object.assign(this, { below, level, factor, amount, network: [below.network, level.network] });
  }

  async gpu() {
    const both = [await this.below.gpu(), await this.level.gpu()];
    return both.every(Boolean) ? both : null;
  }

  // `layout` (height * width cells of the coarse level) is drawn anew from `strength` T on; 0 takes it as it is. Yields the
  // coarse level's frames, level 0, and then the fine one's, level 1, which are `factor` times as high and wide.
  *way({ layout, height, width, strength, seed, steps, sampler }, [coarseNetwork, fineNetwork]) {
    const { below, level, factor, amount } = this, { images } = level;
    const told = { height, width, seed: (seed + SEEDS) | 0, steps, sampler };
    const redrawn = () => below.way({ ...told, ...below.varied(layout, strength, told) }, coarseNetwork);
    const coarse = strength > 0 ? yield* ofLevel(redrawn(), 0) : layout;
    const noise = new CounterNoise(seed).normal(height, width, images, CONTEXT, 0);
    level.network.context = coarseContext(coarse, height, width, images, factor, amount, noise);
    const size = { height: height * factor, width: width * factor };
    yield* ofLevel(level.way({ ...size, seed, steps, sampler }, fineNetwork), 1);
  }
}

export { Cascade };
