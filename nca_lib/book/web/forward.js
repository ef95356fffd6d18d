// The forward process, computed where it is shown. For anywidget, and for pages.
//
// Traits of the model: schedules (name to alpha_bar), images (base64 of bytes, channels last), count, height, width,
// channels, label.

import { copyable, decimals, element, labelled, put, range, select, tools } from "./parts.js";
import { lineChart } from "./chart.js";
import { bytesOfImage, pictures } from "./pictures.js";
import { CounterNoise, START } from "./noise.js";

const POINTS = 75;

function render({ model, el }) {
  const [height, width, channels] = ["height", "width", "channels"].map((name) => model.get(name));
  const schedules = model.get("schedules"), names = Object.keys(schedules), last = schedules[names[0]].length - 1;
  const all = Uint8Array.from(atob(model.get("images")), (letter) => letter.charCodeAt(0));
  const size = height * width * channels, image = (n) => Float32Array.from(all.subarray(n * size, (n + 1) * size), (b) => b / 127.5 - 1);

  const schedule = select(names), t = range(0, last, Math.round(last / 3)), which = range(0, model.get("count") - 1, 0);
  const seed = range(0, 99, 0), row = pictures(), charts = element("div", { class: "nca-pictures" });
  const caption = element("output", { "aria-live": "polite" });
  t.className = "nca-demo-wide";
  const code = copyable(() => [
    "import torch", "from nca_lib.diffusion import noise_schedule", "from nca_lib.noise import CounterNoise, Purpose", "",
    `schedule = noise_schedule("${schedule.value}", ${last + 1})`, `clean = images[${which.value}:${Number(which.value) + 1}]`,
    `noise = CounterNoise(${seed.value}).normal(clean, Purpose.START, 0)`,
    `noisy = schedule.add_noise(clean, torch.tensor([${t.value}]), noise)`,
  ].join("\n"));
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") }, row.root,
    element("div", {}, caption), tools(labelled("timestep t", t, "0 is nearly clean, the last is nearly noise")),
    tools(labelled("schedule", schedule, "how fast the signal goes"), labelled("image", which, "which image"),
      labelled("seed", seed, "of the noise")), charts, code.root);

  function show() {
    const alphaBar = schedules[schedule.value], now = Number(t.value), clean = image(Number(which.value));
    const signal = Math.sqrt(alphaBar[now]), sigma = Math.sqrt(1 - alphaBar[now]);
    const noise = new CounterNoise(Number(seed.value)).normal(height, width, channels, START, 0);
    const noisy = clean.map((v, i) => signal * v + sigma * noise[i]);
    const picture = (label, values) => ({ label, height, width, bytes: bytesOfImage(values, channels, height * width) });
    row.show([picture("clean image", clean), picture("noise", noise), picture(`noisy image at t = ${now}`, noisy)]);
    const places = Array.from({ length: POINTS }, (_, i) => Math.round((i * last) / (POINTS - 1)));
    const mark = places.reduce((best, p, i) => (Math.abs(p - now) < Math.abs(places[best] - now) ? i : best), 0);
    const ratio = (a) => Math.log(a / (1 - a));
    charts.replaceChildren(
      lineChart({ x: places, mark, label: "timestep t", range: [0, 1], series: {
        signal: places.map((p) => Math.sqrt(alphaBar[p])), noise: places.map((p) => Math.sqrt(1 - alphaBar[p])) } }, 330),
      lineChart({ x: places, mark, label: "timestep t", range: [-20, 10], series: {
        "log-SNR": places.map((p) => Math.max(-20, ratio(alphaBar[p]))) } }, 330));
    caption.textContent = `At t = ${now} the signal counts ${signal.toFixed(3)}, the noise ${sigma.toFixed(3)}; ` +
      `log-SNR ${decimals(ratio(alphaBar[now]), 1)}.`;
    code.update();
  }
  for (const control of [schedule, t, which, seed]) control.addEventListener("input", show);
  put(el, root);
  show();
  return () => {};
}

export default { render };
