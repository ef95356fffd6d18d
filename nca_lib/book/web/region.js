// Windows of an endless image, equal to sample_region of nca_lib/canvas/tiles.py. No DOM.
//
// A rectangle is { y, x, height, width } on the plane; a layer is a rectangle with its values, channels last.

import { CounterNoise, START } from "./noise.js";

const grown = ({ y, x, height, width }, by) => ({ y: y - by, x: x - by, height: height + 2 * by, width: width + 2 * by });

// What two rectangles share; null for nothing.
function shared(a, b) {
  const y = Math.max(a.y, b.y), x = Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - y, width = Math.min(a.x + a.width, b.x + b.width) - x;
  return height > 0 && width > 0 ? { y, x, height, width } : null;
}

// What of a rectangle lies outside of a part of it, as rectangles: above, below, left and right of the part.
function outside(whole, part) {
  if (!part) return [whole];
  const { y, x, height, width } = whole, bottom = part.y + part.height, right = part.x + part.width;
  return [
    { y, x, height: part.y - y, width },
    { y: bottom, x, height: y + height - bottom, width },
    { y: part.y, x, height: part.height, width: part.x - x },
    { y: part.y, x: right, height: part.height, width: x + width - right },
  ].filter((rectangle) => rectangle.height > 0 && rectangle.width > 0);
}

// Copy into one layer what it shares with another.
function copyInto(to, from, channels) {
  const common = shared(to, from);
  if (!common) return;
  for (let y = common.y; y < common.y + common.height; y++) {
    const there = ((y - from.y) * from.width + common.x - from.x) * channels;
    const here = ((y - to.y) * to.width + common.x - to.x) * channels;
    to.values.set(from.values.subarray(there, there + common.width * channels), here);
  }
}

const layerOf = (rectangle, channels) =>
  ({ ...rectangle, values: new Float32Array(rectangle.height * rectangle.width * channels) });

function cut(layer, rectangle, channels) {
  const part = layerOf(rectangle, channels);
  copyInto(part, layer, channels);
  return part;
}

// An image that fills the plane, drawn from a seed by DDIM (eta 0). Of each step it keeps what the last window needed
// (a step hears from K cells around), so that a window beside it costs a strip.
class Plane {
  constructor(denoiser, seed, visited) {
    Object.assign(this, { denoiser, seed, visited, kept: [] });
  }

  // Yields after the noise and after each call: { values, call, calls, window }.
  *look(window) {
    const { images, network } = this.denoiser, calls = this.visited.length - 1;
    for (let call = 0; call <= calls; call++) {
      const wanted = grown(window, network.steps * (calls - call)), before = this.kept[call];
      const layer = layerOf(wanted, images), known = before ? shared(wanted, before) : null;
      if (known) copyInto(layer, before, images);
      for (const missing of outside(wanted, known)) copyInto(layer, this.made(call, missing), images);
      this.kept[call] = layer;
      yield { values: cut(layer, window, images).values, call, calls, window };
    }
  }

  made(call, missing) {
    const { denoiser, seed, visited } = this, { images } = denoiser;
    const around = call ? grown(missing, denoiser.network.steps) : missing, { y, x, height, width } = around;
    const noise = new CounterNoise(seed, y, x);
    if (!call) return { ...missing, values: noise.normal(height, width, images, START, 0) };
    const now = visited[call - 1], next = visited[call], { values } = cut(this.kept[call - 1], around, images);
    const output = denoiser.network.forward(values, height, width, denoiser.time(now), noise);
    const clean = denoiser.cleanOf(output, values, now);
    const signal = denoiser.signal(next), sigma = denoiser.sigma(next);
    const implied = (v, i) => (v - denoiser.signal(now) * clean[i]) / denoiser.sigma(now);
    return cut({ ...around, values: values.map((v, i) => signal * clean[i] + sigma * implied(v, i)) }, missing, images);
  }
}

export { Plane, outside, shared };
