// Diffusion on typed arrays, equal to nca_lib's diffusion.py, samplers.py and editing.py; and the worker that runs it.
// The static pages are opened from disk, where browsers refuse module workers: a page runs this text, after those that
// it imports, as a plain worker.

import { CounterNoise, FIRING, SAMPLER, START, philox } from "./noise.js";
import { DiffNCA, GrowingNCA, MLP, halfFloats } from "./engine.js";
import { GpuDiffNCA } from "./gpu.js";
import { Plane } from "./region.js";
import { Cascade } from "./cascade.js";
import { Drawing } from "./way.js";

// The timesteps to visit from T-1 to 0, evenly spaced, and -1 for the clean image; halves round to even, as there.
function timestepArray(timesteps, steps) {
  const stride = (timesteps - 1) / Math.max(1, steps - 1);
  const visited = Array.from({ length: steps }, (_, i) => {
    const exact = 2 * i < steps ? timesteps - 1 - stride * i : stride * (steps - 1 - i), near = Math.round(exact);
    return near - exact === 0.5 && near % 2 ? near - 1 : near;
  });
  return [...visited, -1];
}

// The timesteps to visit, evenly spaced in lambda = log(signal / sigma); see log_snr_array there.
function logSnrArray(alphaBar, steps) {
  const timesteps = alphaBar.length, last = timesteps - 1, visited = [last];
  const lambdas = alphaBar.map((a) => Math.log(a / (1 - a)) / 2);
  const noisy = lambdas[last - Math.floor(timesteps / (4 * steps))], clean = lambdas[Math.floor(timesteps / (2 * steps))];
  const count = steps - 1, stride = (clean - noisy) / Math.max(1, count - 1);
  for (let i = 0; i < count; i++) {
    const value = 2 * i < count ? noisy + stride * i : clean - stride * (count - 1 - i);
    let nearest = 0;
    lambdas.forEach((l, t) => { if (Math.abs(l - value) < Math.abs(lambdas[nearest] - value)) nearest = t; });
    visited.push(Math.max(Math.min(nearest, visited[visited.length - 1] - 1), steps - 1 - visited.length));
  }
  return [...visited, -1];
}

// RePaint's way (Lugmayr et al. 2022): every stretch of `jump` steps is gone `repeats` times.
function repaintPath(visited, jump, repeats) {
  const last = visited.length - 2;
  return visited.flatMap((t, place) => {
    const turns = place >= jump && place <= last && (last - place) % jump === 0;
    const back = turns ? visited.slice(place - jump, place + 1) : [];
    return [t, ...Array.from({ length: repeats - 1 }, () => back).flat()];
  });
}

class Denoiser extends Drawing {
  constructor(model) {
    super();
    this.network = model.kind === "mlp" ? new MLP(model) : new DiffNCA(model);
    this.images = model.image_channels;
    this.target = model.target;
    this.alphaBar = model.alpha_bar;
  }

  signal(t) {
    return t < 0 ? 1 : Math.sqrt(this.alphaBar[t]);
  }

  sigma(t) {
    return t < 0 ? 0 : Math.sqrt(1 - this.alphaBar[t]);
  }

  time(t) {
    return Math.fround(t / this.alphaBar.length);
  }

  gpu() {
    return GpuDiffNCA.of(this.network);
  }

  // What makes a way begin with an image noised to `strength` T, and spread its steps over what is left: FromImage there.
  varied(image, strength, { height, width, seed, steps }) {
    const t = Math.max(Math.round(strength * this.alphaBar.length) - 1, 0), signal = this.signal(t), sigma = this.sigma(t);
    if (t === this.alphaBar.length - 1) return {}; // from noise alone, as any sample
    const start = new CounterNoise(seed).normal(height, width, this.images, START, 0);
    const noised = start.map((v, i) => signal * image[i] + sigma * v);
    return { from: { image: noised, t }, timestepsLeft: timestepArray(t + 1, Math.min(steps, t + 1)) };
  }

  // The clean image under `noisy`, clipped to [-1, 1]. In float32 as PyTorch: at the first timesteps `signal` is tiny,
  // and what rounding does shows.
  cleanOf(output, noisy, t) {
    const float = Math.fround, signal = float(this.signal(t)), sigma = float(this.sigma(t)), { target } = this;
    return output.map((value, i) => {
      let clean = value;
      if (target === "v") clean = float(float(signal * noisy[i]) - float(sigma * value));
      if (target === "epsilon") clean = float(noisy[i] - float(sigma * value)) / signal;
      return Math.min(1, Math.max(-1, clean));
    });
  }

  // "ddim" (Song et al. 2021, eq. 12, with `eta`), "ddpm" (ancestral: eta 1) or "dpm_solver" (DPM-Solver++(2M), Lu et al.
  // 2022) on a canvas of any size, from noise; or `from` { image, t } on. Where `known` (one number a cell) is not 0
  // the pixels of `picture` stay; they are put in noised to the timestep reached, as RePaint does. `y`, `x` say where
  // on a larger canvas this one lies, `sample` which of a batch it is. Yields the image to begin with (clean: null), then
  // after each call of the network; t is the noise level of the image, -1 for the last one, which is finished.
  *way({ height, width, seed, steps, sampler = "ddim", eta = 0, from = null, picture = null, known = null, jump = 5,
    repeats = 1, y = 0, x = 0, sample = 0, timestepsLeft = null }, network) {
    const { images } = this, timesteps = this.alphaBar.length, noise = new CounterNoise(seed, y, x, sample);
    const drawn = (purpose, step) => noise.normal(height, width, images, purpose, step), visits = new Map();
    const even = sampler !== "dpm_solver" || repeats > 1;
    const visited = timestepsLeft ?? (even ? timestepArray(timesteps, steps) : logSnrArray(this.alphaBar, steps));
    const path = repaintPath(visited, jump, repeats).filter((t) => !from || t <= from.t);
    const calls = path.filter((t, i) => path[i + 1] < t).length;
    const share = { ddpm: 1, ddim: eta, dpm_solver: 0 }[sampler]; // of the noise that DDPM draws
    let image = from ? from.image : drawn(START, 0), call = 0, previous = null, stride = 0;
    yield { image, clean: null, call, calls, t: path[0] };
    for (let place = 0; place + 1 < path.length; place++) {
      const now = path[place], before = path[place + 1];
      const address = now + timesteps * (visits.get(now) ?? 0); // a timestep visited again draws new noise
      visits.set(now, (visits.get(now) ?? 0) + 1);
      const signal = this.signal(before), sigma = this.sigma(before);
      if (before > now) { // RePaint goes back: what is left of the image, and noise
        const left = signal / this.signal(now), more = drawn(START, 1 + address);
        image = image.map((v, i) => left * v + Math.sqrt(1 - left * left) * more[i]);
        previous = null;
        continue;
      }
      const output = yield { output: network.forward(image, height, width, this.time(now), noise) };
      const clean = this.cleanOf(output, image, now), last = stride;
      stride = Math.log(signal / this.signal(now)) + Math.log(this.sigma(now) / sigma);
      const bend = sampler === "dpm_solver" && previous && before >= 0 ? stride / (2 * last) : 0, old = previous;
      const ahead = bend ? clean.map((v, i) => v + bend * (v - old[i])) : clean;
      const ratio = (sigma / this.sigma(now)) ** 2 * (1 - (this.signal(now) / signal) ** 2);
      const spread = share * Math.sqrt(Math.max(0, ratio)), drift = Math.sqrt(Math.max(0, sigma ** 2 - spread ** 2));
      const fresh = spread > 0 ? drawn(SAMPLER, address) : null;
      const put = known && before >= 0 ? drawn(START, 1 + address) : null;
      image = image.map((v, i) => {
        if (known && known[Math.floor(i / images)]) return signal * picture[i] + (put ? sigma * put[i] : 0);
        const implied = (v - this.signal(now) * ahead[i]) / this.sigma(now);
        return signal * ahead[i] + drift * implied + (fresh ? spread * fresh[i] : 0);
      });
      previous = clean;
      yield { image, clean, call: ++call, calls, t: before };
    }
  }

  // The steps inside one call at timestep t: after each the clean estimate that the prediction implies, the hidden
  // channels, and how much each cell differs (root mean square over channels) from a run in which one cell of the
  // image was changed: [y, x].
  inside({ image, height, width, t, seed, cell: [y, x] }) {
    const { network } = this, { images, channels } = network, time = this.time(t);
    const touched = image.slice(), noise = () => new CounterNoise(seed), found = [];
    for (let c = 0; c < images; c++) touched[(y * width + x) * images + c] += 0.5;
    const other = network.states(touched, height, width, time, noise());
    // Two runs of one network share its scratch memory, step by step: each step begins by writing it.
    for (const state of network.states(image, height, width, time, noise())) {
      const all = network.part(state, height, width, images, channels);
      const beside = network.part(other.next().value, height, width, images, channels), count = channels - images;
      const influence = new Float32Array(height * width);
      for (let i = 0; i < all.length; i++) influence[Math.floor(i / count)] += (all[i] - beside[i]) ** 2 / count;
      found.push({
        clean: this.cleanOf(network.part(state, height, width, images, 2 * images), image, t),
        hidden: network.part(state, height, width, 2 * images, channels),
        influence: influence.map(Math.sqrt),
      });
    }
    return found;
  }
}

// An endless image of a denoiser.
const planeOf = (denoiser, seed, steps) =>
  new Plane(denoiser, seed, timestepArray(denoiser.alphaBar.length, steps));

function load(model) {
  if (model.kind === "growing-nca") return new GrowingNCA(model);
  if (model.kind === "cascade") return new Cascade(new Denoiser(model.below), new Denoiser(model.level), model.factor, model.noise);
  return new Denoiser(model);
}

// ---- In a worker --------------------------------------------------------------------------------------------------

// A worker is told { load: model } and then { grow: ... }, which it answers with the state after the steps asked for; or
// { sample: ... }, which begins, and { next: true }, which it answers with the state after one call more; or
// { inside: ... }; or { plane: ... } and { look: window }, which begins as { sample: ... } does. To stop it, terminate
// it. With { gpu: true } beside `sample` the GPU computes, if there is one that can; the answer's `on` says who did.
function serve(scope) {
  let model = null, way = null, plane = null, on = "", turn = Promise.resolve();
  async function act(data) {
    if (data.load) model = load(data.load);
    if (data.grow) {
      const { state, height, width, steps, seed, first } = data.grow;
      model.run(state, height, width, steps, new CounterNoise(seed), first);
      scope.postMessage({ state, step: first + steps }, [state.buffer]);
    }
    if (data.sample) {
      const gpu = data.gpu ? await model.gpu() : null;
      way = gpu ? model.sampleBy(gpu, data.sample) : model.sample(data.sample);
      on = gpu ? "GPU" : "processor";
    }
    if (data.plane) plane = planeOf(model, data.plane.seed, data.plane.steps);
    if (data.look) way = plane.look(data.look);
    if (data.next) scope.postMessage({ ...(await way.next()).value, on });
    if (data.inside) scope.postMessage({ inside: model.inside(data.inside) });
  }
  scope.onmessage = ({ data }) => { turn = turn.then(() => act(data)); };
}
if (typeof WorkerGlobalScope === "function" && self instanceof WorkerGlobalScope) serve(self);

export { CounterNoise, Denoiser, DiffNCA, FIRING, GpuDiffNCA, GrowingNCA, START, halfFloats, load, logSnrArray, philox,
  planeOf, repaintPath, timestepArray };
