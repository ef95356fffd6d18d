// Paint where glands are to be, and an automaton draws tissue there: two levels of a cascade. For anywidget, and for pages.
//
// Traits of the model: engine (the text of the worker), weights (name to exported cascade), layout (bytes, the sketch to
// begin with), image (bytes, what it becomes), side (cells of the sketch), colours (name to RGB in [-1, 1]), label.

import { button, copyable, element, labelled, number, put, range, select, tools, watch } from "./parts.js";
import { bytesOfImage, pictures } from "./pictures.js";
import { disc, surface } from "./surface.js";
import { NO_WORKER, addressOf, graphics, startWorker } from "./workers.js";

const SHOWN = 256, UNDO = 50;

const floatsOf = (text) => Float32Array.from(atob(text), (letter) => letter.charCodeAt(0) / 127.5 - 1);

function render({ model, el }) {
  const address = addressOf(model.get("engine")), [[key, weights]] = Object.entries(model.get("weights"));
  const side = model.get("side"), colours = model.get("colours"), fine = side * weights.factor, given = floatsOf(model.get("layout"));
  let layout = given.slice(), worker = null, visible = false, asleep = false, since = 0; // asleep: out of view, half-way
  const before = []; // sketches, to go back to

  const colour = select(Object.keys(colours)), size = range(0, Math.round(side / 5), Math.round(side / 12));
  const strength = range(0, 90, 50, 10), seed = number(0, 99999, 0), steps = range(4, 30, weights.sampler_steps);
  const on = select(["processor", "GPU"]), where = labelled("computed by", on, "what computes: the processor, or the GPU by WebGPU");
  const sketch = surface(`${model.get("label")}: arrow keys move, space paints`, () => Number(size.value), SHOWN, { dab, stroked: begin });
  const progress = element("progress", { value: 0, "aria-label": "denoiser calls made" });
  const made = pictures({ room: 2 * SHOWN }), status = element("output", { "aria-live": "polite" });
  const undo = button("Undo", () => {
    layout = before.pop();
    begin();
  }, "the last stroke");
  const clear = button("Clear", () => sketched(colours[Object.keys(colours)[1]]), "nothing but the second colour");
  const again = button("Begin again", () => sketched(null), "the sketch of the beginning");
  const other = button("Draw again", () => {
    seed.value = (Number(seed.value) + 1) % 100000;
    begin();
  }, "another seed");
  const halt = button("Stop", () => stop("stopped"));
  const code = copyable(() => [
    "import nca_lib", "", `model = ${key}`, `# sketch: (1, 3, ${side}, ${side}) in [-1, 1]`,
    "image = nca_lib.sample(", `    model.laid_out(sketch, ${strength.value / 100}), (${fine}, ${fine}), steps=${steps.value}, seed=${seed.value}`, ")",
  ].join("\n"));
  sketch.root.append(progress);
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") },
    element("div", { class: "nca-pictures" }, element("figure", {}, element("figcaption", {}, "the sketch"), sketch.root), made.root),
    tools(labelled("paint", colour), labelled("size", size, "of the brush"), undo, clear, again),
    tools(labelled("drawn anew, % of T", strength, "how far the coarse level draws the sketch anew: 0 takes it as it is"),
      labelled("steps", steps, "denoiser calls of each level"), labelled("seed", seed), where, other, halt), element("div", {}, status),
    element("div", { class: "nca-demo-help" }, "Drag on the sketch, or move with arrow keys and paint with space. Tissue follows."), code.root);

  function keep() {
    before.push(layout.slice());
    if (before.length > UNDO) before.shift();
  }
  let stroke = false;
  function dab(y, x) {
    if (!stroke) keep();
    stroke = true;
    disc(side, side, y, x, Number(size.value), (j, i) => layout.set(colours[colour.value], (j * side + i) * 3));
    draw();
  }
  function sketched(flat) {
    keep();
    layout = flat ? layout.map((_, i) => flat[i % 3]) : given.slice();
    begin();
  }
  function draw() {
    sketch.show(bytesOfImage(layout, 3, side * side), side, side);
    undo.disabled = !before.length;
    code.update();
  }

  // An image whose pixels are `each` fine cells wide.
  function show(label, values, each) {
    const wide = fine / each, part = bytesOfImage(values, 3, wide * wide), bytes = new Uint8ClampedArray(4 * fine * fine);
    for (let cell = 0; cell < fine * fine; cell++) {
      const from = 4 * (Math.floor(Math.floor(cell / fine) / each) * wide + Math.floor((cell % fine) / each));
      bytes.set(part.subarray(from, from + 4), 4 * cell);
    }
    made.show([{ label, bytes, height: fine, width: fine }]);
  }

  function begin() {
    stroke = false;
    free();
    draw();
    worker = startWorker(address, weights, hear, () => stop(NO_WORKER));
    worker.postMessage({ gpu: on.value === "GPU", sample: { layout, height: side, width: side, strength: strength.value / 100,
      seed: Number(seed.value), steps: Number(steps.value), sampler: "ddim" } });
    since = performance.now();
    status.textContent = "drawing";
    halt.disabled = false;
    next();
  }
  const next = () => worker?.postMessage({ next: true });
  function hear({ image, clean, call, calls, t, level, on: by }) {
    const done = level === 1 && t < 0;
    show(level ? "tissue" : "the sketch, drawn anew", done ? image : clean ?? image, level ? 1 : weights.factor);
    progress.value = (level + call / calls) / 2;
    progress.style.visibility = done ? "hidden" : "visible";
    status.textContent = `${level ? "told the sketch, cells draw tissue" : "the coarse level draws the sketch anew"}: call ${call} of ${calls}`;
    if (done) stop(`seed ${seed.value}: ${((performance.now() - since) / 1000).toFixed(1)} s on the ${by}`);
    else if (visible) next();
    else asleep = true;
  }
  function free() {
    worker?.terminate();
    worker = null;
    asleep = false;
  }
  function stop(words) {
    free();
    progress.style.visibility = "hidden";
    halt.disabled = true;
    status.textContent = words;
  }

  for (const control of [strength, steps, seed, on]) control.addEventListener("change", begin);
  size.addEventListener("input", () => sketch.moveRing());
  put(el, root);
  where.hidden = true;
  graphics().then((kind) => {
    where.hidden = !kind;
    if (kind === "GPU") on.value = "GPU";
  });
  draw();
  stop("paint, and tissue follows");
  made.zoomTo(Math.max(1, Math.floor(SHOWN / fine)));
  show("tissue", floatsOf(model.get("image")), 1);
  const unwatch = watch(root, (now) => {
    visible = now;
    if (visible && asleep) {
      asleep = false;
      next();
    }
  });
  return () => {
    unwatch();
    free();
    URL.revokeObjectURL(address);
  };
}

export default { render };
