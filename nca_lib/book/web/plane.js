// An endless image under a window that is moved over it. For anywidget, and for pages.
//
// Traits of the model: engine (the text of the worker), weights (name to exported model), label, image (the first window,
// bytes), height, width, y, x, seed, steps.

import { button, calm, copyable, element, labelled, number, put, tools, watch } from "./parts.js";
import { bytesOfImage } from "./pictures.js";
import { NO_WORKER, addressOf, startWorker } from "./workers.js";

const PLANE = `
.nca-plane { position: relative; width: fit-content; max-width: 100%; outline: 1px solid var(--line); outline-offset: -1px; }
.nca-plane canvas { display: block; width: 36rem; max-width: 100%; height: auto; cursor: grab; touch-action: none;
  image-rendering: pixelated; }
.nca-plane canvas:active { cursor: grabbing; }
.nca-plane progress { position: absolute; left: 0; bottom: 0; width: 100%; height: 6px; pointer-events: none;
  accent-color: var(--accent); }
`;
const STRIDE = 8, FAR = 1e9; // cells

function render({ model, el }) {
  const address = addressOf(model.get("engine")), [[key, weights]] = Object.entries(model.get("weights"));
  const height = model.get("height"), width = model.get("width"), steps = model.get("steps"), colours = weights.image_channels;
  const home = { y: model.get("y"), x: model.get("x") }, cells = height * width;
  const bytes = new Uint8ClampedArray(4 * cells), finished = new Uint8Array(cells); // of the window at `at`
  let at = { ...home }, asked = null, worker = null, waiting = false, visible = false;

  const seed = number(0, 2 ** 31 - 1, model.get("seed")), status = element("output", { "aria-live": "off" });
  const progress = element("progress", { value: 0, "aria-label": "denoiser calls made" });
  const canvas = element("canvas", { tabindex: 0, role: "application", height, width,
    "aria-label": `${model.get("label")}: arrow keys move, Home leads back` });
  const code = copyable(() => [
    "import nca_lib", "from nca_lib.canvas import sample_region", "", `model = nca_lib.load("${key}")`,
    `image = sample_region(model, ${at.y}, ${at.x}, ${height}, ${width}, seed=${seed.value}, steps=${steps})`,
  ].join("\n"));
  const far = () => Math.round((2 * Math.random() - 1) * FAR);
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") },
    element("style", {}, PLANE), element("div", { class: "nca-plane" }, canvas, progress),
    tools(button("Far away", () => goTo(far(), far()), `up to ${FAR / 1e6} million cells from here`),
      button("Back", () => goTo(home.y, home.x), "where it began"),
      labelled("seed", seed, "of the whole plane"), status),
    element("div", { class: "nca-demo-help" }, "Drag to move over the plane; or arrow keys, with Shift a whole window."), code.root);

  // The window goes to another place; what was seen there and still is stays.
  function goTo(y, x) {
    const dy = y - at.y, dx = x - at.x, old = bytes.slice(), known = finished.slice();
    bytes.fill(0);
    finished.fill(0);
    for (let j = Math.max(0, -dy); j < Math.min(height, height - dy); j++) {
      for (let i = Math.max(0, -dx); i < Math.min(width, width - dx); i++) {
        const to = j * width + i, from = (j + dy) * width + i + dx;
        finished[to] = known[from];
        bytes.set(old.subarray(4 * from, 4 * from + 4), 4 * to);
      }
    }
    at = { y, x };
    draw();
    say("drawing");
    think();
  }

  function draw() {
    canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
    code.update();
  }
  function say(words) {
    status.textContent = `row ${at.y}, column ${at.x}${words && `: ${words}`}`;
  }

  function think() {
    const here = asked?.y === at.y && asked?.x === at.x;
    if (waiting || !visible || (here && asked.done)) return;
    worker ??= begin();
    if (!here) {
      asked = { ...at, done: false };
      worker.postMessage({ look: { ...at, height, width } });
    }
    waiting = true;
    worker.postMessage({ next: true });
  }
  function begin() {
    const started = startWorker(address, weights, hear, () => {
      stop();
      visible = false;
      say(NO_WORKER);
    });
    started.postMessage({ plane: { seed: Number(seed.value), steps } });
    return started;
  }
  function stop() {
    worker?.terminate();
    worker = asked = null;
    waiting = false;
    progress.style.visibility = "hidden";
  }
  function hear({ values, call, calls, window }) {
    waiting = false;
    const done = call === calls;
    if (window.y === at.y && window.x === at.x) {
      const seen = bytesOfImage(values, colours, cells);
      for (let cell = 0; cell < cells; cell++) { // what is finished does not turn to noise again
        if (!finished[cell]) bytes.set(seen.subarray(4 * cell, 4 * cell + 4), 4 * cell);
      }
      if (done) finished.fill(1);
      draw();
    }
    if (asked.y === window.y && asked.x === window.x) asked.done = done;
    progress.value = call / calls;
    progress.style.visibility = done ? "hidden" : "visible";
    say(done ? "" : `call ${call} of ${calls}`);
    think();
  }

  let held = null; // where the plane was taken hold of
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    held = { ...at, left: event.clientX, top: event.clientY };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    const scale = width / canvas.getBoundingClientRect().width;
    const y = held.y + Math.round((held.top - event.clientY) * scale), x = held.x + Math.round((held.left - event.clientX) * scale);
    if (y !== at.y || x !== at.x) goTo(y, x);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key], far = event.shiftKey;
    if (move) goTo(at.y + move[0] * (far ? height : STRIDE), at.x + move[1] * (far ? width : STRIDE));
    else if (event.key === "Home") goTo(home.y, home.x);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  seed.addEventListener("change", () => {
    stop();
    finished.fill(0);
    say("drawing");
    think();
  });

  const first = Uint8Array.from(atob(model.get("image")), (letter) => letter.charCodeAt(0));
  bytes.fill(255);
  for (let i = 0; i < 4 * cells; i++) if (i % 4 < 3) bytes[i] = first[(i >> 2) * colours + (colours === 1 ? 0 : i % 4)];
  finished.fill(1);
  put(el, root);
  progress.style.visibility = "hidden";
  draw();
  say("");
  // What is around the first window is computed before it is asked for, but not for those who want it calm.
  const unwatch = watch(root, (now) => {
    visible = now;
    if (!calm() || asked) think();
  });
  return () => {
    unwatch();
    stop();
    URL.revokeObjectURL(address);
  };
}

export default { render };
