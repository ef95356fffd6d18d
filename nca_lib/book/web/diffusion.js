// Diffusion by an automaton: from noise to image call by call, to and fro, with a hand in it. For anywidget and pages.
//
// Traits of the model: engine (the text of the worker), weights (name to exported model), label. All computing happens
// in a worker that exists only while there is something to compute: on typed arrays, or by WebGPU where there is a real one.

import { button, calm, copyable, element, labelled, number, put, range, select, tools, watch } from "./parts.js";
import { bytesOfImage, pictures } from "./pictures.js";
import { disc, surface } from "./surface.js";
import { NO_WORKER, addressOf, graphics, startWorker } from "./workers.js";
import { insideView } from "./inside.js";

const SIDE = 290, LENGTH = 40, WIDER = 24, WIDEST = 232; // WIDER: cells at a time
const MARGIN = 16; // cells around a hole that are looked at to fill it
const REPAINT = { sampler: "ddpm", jump: 5, repeats: 2 };

const random = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

// A canvas of noise: its hole is everywhere.
function blank(height, width, colours) {
  const picture = Float32Array.from({ length: height * width * colours }, random);
  return { height, width, picture, hole: new Uint8Array(height * width).fill(1) };
}

function widened({ height, width, picture, hole }, colours) {
  const made = blank(height, width + WIDER, colours);
  for (let y = 0; y < height; y++) {
    made.hole.set(hole.subarray(y * width, (y + 1) * width), y * made.width);
    made.picture.set(picture.subarray(y * width * colours, (y + 1) * width * colours), y * made.width * colours);
  }
  return made;
}

// The part of a canvas that filling its hole needs; `cells` are their places on the canvas.
function windowOf({ height, width, picture, hole }, colours) {
  const holes = [...hole.keys()].filter((cell) => hole[cell]);
  const part = (places, count) => [
    Math.max(0, places.reduce((a, b) => Math.min(a, b)) - MARGIN),
    Math.min(count, places.reduce((a, b) => Math.max(a, b)) + MARGIN + 1),
  ];
  const [top, bottom] = part(holes.map((cell) => Math.floor(cell / width)), height);
  const [left, right] = part(holes.map((cell) => cell % width), width);
  const made = { y: top, x: left, height: bottom - top, width: right - left };
  made.cells = Int32Array.from({ length: made.height * made.width }, (_, i) =>
    (top + Math.floor(i / made.width)) * width + left + (i % made.width));
  made.known = Uint8Array.from(made.cells, (cell) => 1 - hole[cell]);
  made.picture = new Float32Array(made.cells.length * colours);
  made.cells.forEach((cell, i) => made.picture.set(picture.subarray(cell * colours, (cell + 1) * colours), i * colours));
  return made;
}

function render({ model, el }) {
  const address = addressOf(model.get("engine")), [[key, weights]] = Object.entries(model.get("weights"));
  const colours = weights.image_channels, timesteps = weights.alpha_bar.length, label = model.get("label");
  let canvas = blank(LENGTH, LENGTH, colours), worker = null, visible = false, stopAt = null;
  let run = null; // { part, settings, word, frames, at, going }: what was or is being computed

  const seed = number(0, 99999, 0), steps = number(1, timesteps, weights.sampler_steps);
  const height = number(8, 96, LENGTH), width = number(8, WIDEST, LENGTH), status = element("output");
  const eta = range(0, 1, 0, 0.05), etaSaid = element("output", { "aria-live": "off" }, "0");
  const etaShown = labelled("eta", eta, "of ddim: fresh noise at each step; 0 is none, 1 is as much as ddpm's");
  const sampler = select(["ddim", "ddpm", "dpm_solver"]), progress = element("progress", { value: 0, "aria-label": "denoiser calls made" });
  const draw = button("Draw new", () => anew(Number(seed.value) + 1), "another seed, from noise");
  const fill = button("Fill the hole", () => begin("filling the hole", canvas), "paint a hole first");
  const grow = button("Grow wider", () => begin("growing wider", widened(canvas, colours)));
  const halt = button("Stop", () => (run.going ? stop("stopped") : go()), "stop here, or go on from here");
  const step = button("Step", () => go(1), "one denoiser call");
  const scrubber = range(0, 0, 0), place = element("output", { "aria-live": "off" });
  const on = select(["processor", "GPU"]), where = labelled("computed by", on, "what computes: the processor, or the GPU by WebGPU");
  const tool = select(["hole", "colour", "new noise"]), size = range(1, 8, 4);
  const colour = element("input", { type: "color", value: "#7a3b1d" });
  const shown = surface(`${label}: arrow keys move, space paints`, () => Number(size.value), SIDE, { dab, stroked: () => inside.changed() });
  const caption = element("figcaption", {}, "noisy image"), estimate = pictures({ room: SIDE });
  const inside = insideView(address, weights, () => {
    const frame = run?.frames[run.at];
    return frame && frame.t >= 0 ? { image: frame.image, height: run.part.height, width: run.part.width, t: frame.t,
      seed: run.settings.seed } : null;
  });
  const stirred = () => sampler.value === "ddim" && Number(eta.value) > 0;
  const code = copyable(() => [
    ...(stirred() ? ["from functools import partial", ""] : []), "import nca_lib", "from nca_lib.samplers import " + sampler.value, "",
    `model = nca_lib.load("${key}")`, `image = nca_lib.sample(\n    model, (${height.value}, ${width.value}), ` +
      `sampler=${stirred() ? `partial(ddim, eta=${eta.value})` : sampler.value}, steps=${steps.value}, seed=${seed.value}\n)`,
  ].join("\n"));
  const link = button("Link", share, "put seed, sampler, eta, steps, shape and place into the address");
  scrubber.className = "nca-demo-wide";
  shown.root.append(progress);
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": label },
    element("div", { class: "nca-pictures" }, element("figure", {}, caption, shown.root), estimate.root),
    tools(labelled("call", scrubber, "go back, or forth again"), place), tools(draw, halt, step, fill, grow, status),
    tools(labelled("seed", seed), labelled("sampler", sampler), etaShown, etaSaid, labelled("steps", steps, "denoiser calls"),
      labelled("height", height), labelled("width", width), where, ...(model.inPage ? [link] : [])),
    tools(labelled("brush", tool, "hole: to fill. colour, new noise: on the noisy image, then go on"), labelled("colour", colour), labelled("size", size)),
    element("div", { class: "nca-demo-help" }, "Stop half-way, paint a colour on the noisy image, go on. Or paint a hole when it is " +
      "done (drag, or arrow keys and space) and fill it."), inside.root, code.root);

  function anew(value) {
    seed.value = value;
    begin("drawing", blank(Number(height.value), Number(width.value), colours), true);
  }
  function begin(word, next, whole = false) {
    free();
    if (!whole) seed.value = Number(seed.value) + 1;
    canvas = next;
    const part = windowOf(next, colours), resampled = part.known.includes(1) ? REPAINT : {};
    const settings = { seed: Number(seed.value), steps: Number(steps.value), sampler: sampler.value, eta: Number(eta.value), ...resampled };
    run = { part, settings, word, frames: [], at: 0, going: false, took: 0 };
    estimate.zoomTo(Math.max(1, Math.floor(SIDE / canvas.height)));
    go();
  }

  // Go on from the frame that is shown, all the way or for some calls.
  function go(count = Infinity) {
    if (!run || !run.frames.length) {
      if (!run) return anew(Number(seed.value) + 1);
    } else if (run.frames[run.at].t < 0) return;
    const { part, frames, settings } = run, from = frames[run.at];
    const { cells, ...told } = part;
    if (!worker) {
      worker = startWorker(address, weights, (frame) => hear(frame, frames), () => stop(NO_WORKER));
      frames.length = from ? run.at + 1 : 0; // what came later comes anew
      const sample = { ...told, ...settings, from: from ? { image: from.image, t: from.t } : null };
      worker.postMessage({ gpu: on.value === "GPU", sample });
      run.since = performance.now();
      if (from) run.skip = 1; // the first that comes is where we are
      run.before = from ? from.call : 0;
    }
    run.going = true;
    run.left = count;
    status.textContent = `${run.word}, seed ${settings.seed}`;
    next();
    refresh();
  }
  const next = () => worker?.postMessage({ next: true });
  function hear(frame, frames) {
    if (run?.frames !== frames || !worker) return;
    if (run.skip) run.skip = 0;
    else {
      frames.push({ ...frame, call: run.before + frame.call, calls: run.before + frame.calls });
      run.at = frames.length - 1;
      run.left -= frame.call > 0;
    }
    if (frame.t < 0) finish();
    else if (run.left <= 0 || stopAt === frame.call) stop("stopped");
    else if (visible || !run.frames[1]) next();
    else run.asleep = true;
    if (stopAt === frame.call) stopAt = null;
    refresh();
  }
  function finish() {
    const { part, frames, settings } = run, { image, calls, on: by } = frames[frames.length - 1];
    part.cells.forEach((cell, i) => canvas.picture.set(image.subarray(i * colours, (i + 1) * colours), cell * colours));
    canvas.hole.fill(0);
    const full = canvas.width + WIDER > WIDEST ? `; ${canvas.width} cells are as wide as it gets` : "";
    free();
    stop(`seed ${settings.seed}, ${calls} calls of the denoiser, ${(run.took / 1000).toFixed(1)} s on the ${by}${full}`);
  }
  function free() {
    worker?.terminate();
    worker = null;
    if (run?.since) run.took += performance.now() - run.since;
    if (run) run.going = run.asleep = run.since = false;
  }
  function stop(words) {
    free();
    status.textContent = words;
    refresh();
    inside.changed();
  }

  function dab(y, x) {
    const frame = run?.frames[run.at];
    if (!frame || run.going) return;
    const done = frame.t < 0, t = Math.max(0, frame.t), radius = Number(size.value), { cells } = run.part;
    const signal = done ? 1 : Math.sqrt(weights.alpha_bar[t]), sigma = done ? 0 : Math.sqrt(1 - weights.alpha_bar[t]);
    const wanted = [1, 3, 5].map((i) => parseInt(colour.value.slice(i, i + 2), 16) / 127.5 - 1);
    if (!done) run.frames.length = run.at + 1; // what came later is no longer true
    const where = done ? null : new Map([...cells].map((cell, i) => [cell, i]));
    disc(canvas.height, canvas.width, y, x, radius, (j, i) => {
      const cell = j * canvas.width + i, to = done ? cell : where.get(cell), values = done ? canvas.picture : frame.image;
      if (to === undefined || (done && tool.value !== "colour" && canvas.hole[cell])) return;
      if (done && tool.value !== "colour") canvas.hole[cell] = 1;
      for (let c = 0; c < colours; c++) {
        values[to * colours + c] = tool.value === "colour" ? signal * wanted[c] + sigma * random() : random();
      }
    });
    refresh();
  }

  function refresh() {
    const frame = run?.frames[run.at], noisy = canvas.picture.slice(), clean = canvas.picture.slice();
    if (frame && (frame.t >= 0 || run.at < run.frames.length - 1)) {
      run.part.cells.forEach((cell, i) => {
        noisy.set(frame.image.subarray(i * colours, (i + 1) * colours), cell * colours);
        if (frame.clean && !run.part.known[i]) clean.set(frame.clean.subarray(i * colours, (i + 1) * colours), cell * colours);
      });
    }
    const cells = canvas.height * canvas.width, about = { height: canvas.height, width: canvas.width };
    shown.show(bytesOfImage(noisy, colours, cells), canvas.height, canvas.width);
    estimate.show([{ label: "clean estimate", bytes: bytesOfImage(frame?.clean || frame?.t < 0 ? clean : noisy, colours, cells), ...about }]);
    const frames = run?.frames ?? [], done = frame?.t < 0, going = Boolean(run?.going);
    scrubber.max = Math.max(0, frames.length - 1);
    scrubber.value = run?.at ?? 0;
    const words = !frame ? "" : done ? "finished" : `t = ${frame.t}`;
    caption.textContent = `noisy image${words && `, ${words}`}`;
    place.textContent = frame ? `call ${frame.call} of ${frame.calls}, ${words}` : "";
    progress.value = frame ? frame.call / frame.calls : 0;
    progress.style.visibility = going ? "visible" : "hidden";
    halt.textContent = !run || going ? "Stop" : "Go on";
    halt.disabled = !run || (!going && (!frame || done));
    step.disabled = going || done;
    fill.disabled = going || !done || !canvas.hole.includes(1);
    grow.disabled = going || !done || canvas.width + WIDER > WIDEST;
    grow.title = canvas.width + WIDER > WIDEST ? `${WIDEST} cells is the widest` : `${WIDER} cells more to the right`;
    etaShown.hidden = etaSaid.hidden = sampler.value !== "ddim";
    etaSaid.textContent = eta.value;
    code.update();
  }

  function clamp() {
    for (const each of [steps, height, width]) each.value = Math.min(each.max, Math.max(each.min, Math.round(each.value) || each.min));
  }

  // A view as part of the address, to be sent to somebody.
  function share() {
    const view = { seed, steps, sampler, eta, height, width };
    const parts = Object.entries(view).map(([name, control]) => `${name}=${control.value}`);
    if (run) parts.push(`call=${run.frames[run.at]?.call ?? 0}`);
    location.hash = `${key}&${parts.join("&")}`;
    status.textContent = "the address of this page now leads to this view";
  }
  function shared() {
    if (!model.inPage || !location.hash.startsWith(`#${key}&`)) return false;
    const view = Object.fromEntries(new URLSearchParams(location.hash.slice(key.length + 2)));
    for (const [name, control] of Object.entries({ seed, steps, sampler, eta, height, width })) {
      if (view[name] !== undefined) control.value = view[name];
    }
    clamp();
    stopAt = view.call === undefined || view.call === view.steps ? null : Number(view.call);
    if (!sampler.value) sampler.value = "ddim";
    root.scrollIntoView({ block: "center" });
    visible = true;
    anew(Number(seed.value));
    return true;
  }

  scrubber.addEventListener("input", () => {
    const to = Number(scrubber.value);
    if (run.going) stop("stopped");
    run.at = to;
    refresh();
    inside.changed();
  });
  seed.addEventListener("change", () => anew(Number(seed.value)));
  for (const control of [sampler, eta, steps, height, width]) {
    control.addEventListener("change", () => {
      clamp();
      anew(Number(seed.value));
    });
  }
  eta.addEventListener("input", () => { etaSaid.textContent = eta.value; });
  size.addEventListener("input", () => shown.moveRing());
  put(el, root);
  where.hidden = true;
  graphics().then((kind) => {
    where.hidden = !kind;
    if (kind === "GPU") on.value = "GPU";
  });
  refresh();
  const fromAddress = shared();
  const unwatch = watch(root, (now) => {
    visible = now;
    if (visible && run?.asleep) {
      run.asleep = false;
      next();
    }
    if (visible && !run && !calm() && !fromAddress) anew(1);
  });
  return () => {
    unwatch();
    free();
    inside.stop();
    URL.revokeObjectURL(address);
  };
}

export default { render };
