// Sixteen samples at once by the dense network of chapter 2, fast enough to be drawn anew while a slider moves. For
// anywidget, and for pages.
//
// Traits of the model: weights (name to exported model), label.

import { button, calm, copyable, element, labelled, put, range, select, tools, watch } from "./parts.js";
import { lineChart } from "./chart.js";
import { bytesOfImage, pictures } from "./pictures.js";
import { load } from "./sampling.js";

const ACROSS = 4, POINTS = 60, RATE = 10; // RATE: calls a second when played

function render({ model, el }) {
  const [[key, weights]] = Object.entries(model.get("weights")), denoiser = load(weights), side = weights.size;
  const last = weights.alpha_bar.length - 1, wide = ACROSS * (side + 1) - 1;
  const sampler = select(["ddim", "ddpm", "dpm_solver"]), steps = range(1, 60, 20), seed = range(0, 99, 0);
  const call = range(0, 20, 20), place = element("output", { "aria-live": "off" }), row = pictures({ room: 600 });
  const words = element("output", { "aria-live": "polite" }), chart = element("div");
  const play = button("Play", () => (playing ? pause() : start()), "from noise to digits");
  let ways = [], playing = 0, took = 0;
  call.className = steps.className = "nca-demo-wide";
  const code = copyable(() => [
    "import nca_lib", `from nca_lib.samplers import ${sampler.value}`, "", `model = nca_lib.load("${key}")`, "images = nca_lib.sample(",
    `    model, (${side}, ${side}), count=${ACROSS ** 2}, sampler=${sampler.value}, steps=${steps.value}, seed=${seed.value}`, ")",
  ].join("\n"));
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") }, row.root, chart,
    element("div", {}, words), tools(play, labelled("call", call, "go to any call of the denoiser"), place),
    tools(labelled("sampler", sampler, "how to step from noise to image"), labelled("steps", steps, "denoiser calls of a sample"),
      labelled("seed", seed, "of the noise: the same seed, the same digits")), code.root);

  // Images side by side, a cell between them.
  function together(images) {
    const bytes = new Uint8ClampedArray(4 * wide * wide);
    images.forEach((image, n) => {
      const part = bytesOfImage(image, weights.image_channels, side * side), top = Math.floor(n / ACROSS) * (side + 1);
      for (let y = 0; y < side; y++) {
        bytes.set(part.subarray(4 * y * side, 4 * (y + 1) * side), 4 * ((top + y) * wide + (n % ACROSS) * (side + 1)));
      }
    });
    return { bytes, height: wide, width: wide };
  }
  function draw() {
    const began = performance.now(), settings = { height: side, width: side, seed: Number(seed.value), sampler: sampler.value };
    ways = Array.from({ length: ACROSS ** 2 }, (_, sample) => [...denoiser.sample({ ...settings, steps: Number(steps.value), sample })]);
    took = performance.now() - began;
    call.max = steps.value;
    call.value = steps.value;
    show();
  }
  function show() {
    const at = Number(call.value), { t } = ways[0][at], places = Array.from({ length: POINTS }, (_, i) => Math.round((i * last) / (POINTS - 1)));
    const mark = places.reduce((best, p, i) => (Math.abs(p - Math.max(0, t)) < Math.abs(places[best] - Math.max(0, t)) ? i : best), 0);
    row.show([{ label: t < 0 ? "finished" : `noisy images, t = ${t}`, ...together(ways.map((way) => way[at].image)) },
      { label: "clean estimates", ...together(ways.map((way) => way[Math.max(1, at)].clean)) }]);
    chart.replaceChildren(lineChart({ x: places, mark, label: "timestep t", range: [0, 1], series: {
      signal: places.map((p) => Math.sqrt(weights.alpha_bar[p])), noise: places.map((p) => Math.sqrt(1 - weights.alpha_bar[p])) } }));
    place.textContent = `${at} of ${steps.value}`;
    words.textContent = `${ACROSS ** 2} digits by ${steps.value} calls each, drawn in ${took.toFixed(0)} ms here.`;
    code.update();
  }
  function start() {
    if (call.value === call.max) call.value = 0;
    play.textContent = "Pause";
    show();
    playing = setInterval(() => {
      call.value = Number(call.value) + 1;
      show();
      if (call.value === call.max) pause();
    }, 1000 / RATE);
  }
  function pause() {
    clearInterval(playing);
    playing = 0;
    play.textContent = "Play";
  }
  for (const control of [sampler, steps, seed]) {
    control.addEventListener("input", () => {
      pause();
      draw();
    });
  }
  call.addEventListener("input", () => {
    pause();
    show();
  });
  put(el, root);
  draw();
  const unwatch = watch(root, (visible) => {
    if (!visible) pause();
    else if (!calm() && !root.dataset.played) {
      root.dataset.played = "once";
      start();
    }
  });
  return () => {
    pause();
    unwatch();
  };
}

export default { render };
