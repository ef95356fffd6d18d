// Automata alive in the page, for anywidget and (with shim.js) for pages without a kernel. No dependencies.
//
// Traits of the model: kind ("growing" or "diffusion"), engine (the text of engine.js), weights (JSON: name to
// exported model), label. All computing happens in a worker that exists only while there is something to compute.

const STYLE = `
.nca-demo { --ink: var(--jp-ui-font-color1, var(--pst-color-text-base, CanvasText));
  --line: var(--jp-border-color1, var(--pst-color-border, #8888));
  --accent: var(--jp-brand-color1, var(--pst-color-primary, #4c5fa8));
  --face: var(--jp-layout-color2, var(--pst-color-surface, #8882));
  max-width: 46rem; margin: 1em 0; color: var(--ink);
  font: var(--jp-ui-font-size1, 0.9rem) / 1.4 var(--jp-ui-font-family, inherit); }
.nca-demo-surface { position: relative; overflow: hidden; max-width: 100%; width: fit-content;
  outline: 1px solid var(--line); outline-offset: -1px; background: #fff; }
.nca-demo-surface:has(canvas:focus-visible) { outline: 3px solid var(--accent); }
.nca-demo canvas { display: block; max-width: 100%; height: auto; touch-action: none; cursor: crosshair;
  image-rendering: pixelated; outline: none; }
.nca-demo-ring { position: absolute; box-sizing: border-box; border: 2px solid #fff; border-radius: 50%;
  box-shadow: 0 0 0 1px #000, inset 0 0 0 1px #000; transform: translate(-50%, -50%);
  pointer-events: none; visibility: hidden; }
.nca-demo canvas:hover + .nca-demo-ring, .nca-demo canvas:focus-visible + .nca-demo-ring { visibility: visible; }
.nca-demo-tools { display: flex; flex-wrap: wrap; gap: 0.5em 0.9em; align-items: center; margin-top: 0.6em; }
.nca-demo label { display: inline-flex; gap: 0.4em; align-items: center; }
.nca-demo input[type=range] { width: 6.5em; accent-color: var(--accent); }
.nca-demo button, .nca-demo select { font: inherit; color: inherit; background: var(--face); padding: 0.25em 0.8em;
  border: 1px solid var(--line); border-radius: 4px; min-height: 2.1em; }
.nca-demo button { cursor: pointer; }
.nca-demo button:disabled { opacity: 0.45; cursor: default; }
.nca-demo :is(button, select, input):focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
.nca-demo progress { position: absolute; left: 0; bottom: 0; width: 100%; height: 6px; pointer-events: none;
  accent-color: var(--accent); }
.nca-demo-help { font-size: 0.9em; opacity: 0.8; margin-top: 0.4em; }
@media print { .nca-demo-tools, .nca-demo-help { display: none; } }
`;
const SIDE = 400; // pixels on the screen of a canvas' height, at most

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const labelled = (text, control) => element("label", {}, text, control);
const range = (low, high, value) => element("input", { type: "range", min: low, max: high, value });
const options = (names) => names.map((name) => element("option", { value: name }, name));

function button(text, action) {
  const made = element("button", { type: "button" }, text);
  made.addEventListener("click", action);
  return made;
}

// Where workers find the engine. A page opened from disk may start none from a module, hence the cut `export`.
function addressOf(engine) {
  const text = engine.replace(/^export \{[^}]*\};/m, "");
  return URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
}

function startWorker(address, model, answer, failed) {
  const worker = new Worker(address);
  worker.onmessage = ({ data }) => answer(data);
  worker.onerror = failed;
  worker.postMessage({ load: model });
  return worker;
}

// A picture of cells to paint on with mouse, finger or keyboard. `dab(y, x)` is called at every cell of a stroke,
// `planted(y, x)` at a double click or Enter, `stroked()` at the end of a stroke.
function surface(label, size, { dab, planted = () => {}, stroked = () => {} }) {
  const canvas = element("canvas", { tabindex: 0, role: "application", "aria-label": label });
  const ring = element("div", { class: "nca-demo-ring" });
  const root = element("div", { class: "nca-demo-surface" }, canvas, ring);
  const cursor = { y: 0, x: 0 };
  let last = null; // the cell where the stroke is

  function moveRing() {
    ring.style.left = `${((cursor.x + 0.5) / canvas.width) * 100}%`;
    ring.style.top = `${((cursor.y + 0.5) / canvas.height) * 100}%`;
    ring.style.width = `${((2 * size() + 1) / canvas.width) * 100}%`;
    ring.style.height = `${((2 * size() + 1) / canvas.height) * 100}%`;
  }

  function show(bytes, height, width) {
    if (canvas.height !== height || canvas.width !== width) {
      Object.assign(canvas, { height, width });
      canvas.style.width = `${Math.floor(SIDE / height) * width}px`;
      Object.assign(cursor, { y: height >> 1, x: width >> 1 });
      moveRing();
    }
    canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
  }

  function moveTo(event) {
    const box = canvas.getBoundingClientRect();
    const place = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    cursor.y = place((event.clientY - box.top) / box.height, canvas.height);
    cursor.x = place((event.clientX - box.left) / box.width, canvas.width);
    moveRing();
  }

  function line(from, to) { // a fast pointer skips cells: dab at each between
    const steps = Math.max(1, Math.abs(to.y - from.y), Math.abs(to.x - from.x));
    for (let k = 0; k <= steps; k++) {
      dab(Math.round(from.y + ((to.y - from.y) * k) / steps), Math.round(from.x + ((to.x - from.x) * k) / steps));
    }
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.focus({ preventScroll: true, focusVisible: false });
    canvas.setPointerCapture(event.pointerId);
    moveTo(event);
    last = { ...cursor };
    line(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    moveTo(event);
    if (!last) return;
    line(last, cursor);
    last = { ...cursor };
  });
  const end = () => {
    if (last) stroked();
    last = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("dblclick", () => planted(cursor.y, cursor.x));

  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (move) {
      cursor.y = Math.min(canvas.height - 1, Math.max(0, cursor.y + move[0]));
      cursor.x = Math.min(canvas.width - 1, Math.max(0, cursor.x + move[1]));
      moveRing();
    } else if (event.key === " ") {
      dab(cursor.y, cursor.x);
      stroked();
    } else if (event.key === "Enter") planted(cursor.y, cursor.x);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return { root, show, moveRing };
}

// Call `act(y, x)` for every cell of a disc on the grid.
function disc(height, width, y, x, radius, act) {
  for (let j = Math.max(0, y - radius); j <= Math.min(height - 1, y + radius); j++) {
    for (let i = Math.max(0, x - radius); i <= Math.min(width - 1, x + radius); i++) {
      if ((j - y) ** 2 + (i - x) ** 2 <= (radius + 0.5) ** 2) act(j, i);
    }
  }
}

// Call `act(visible)` when the element comes into view or leaves it (also the document), or the tab does.
function watch(root, act) {
  let inView = false;
  const tell = () => act(inView && !document.hidden);
  const observer = new IntersectionObserver((entries) => {
    inView = entries[entries.length - 1].isIntersecting;
    tell();
  });
  observer.observe(root);
  document.addEventListener("visibilitychange", tell);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", tell);
  };
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- The growing automaton ----------------------------------------------------------------------------------------

const GRID = 48, ALPHA = 3, GROWN = 90; // GROWN: steps until there is something to see

function growing({ address, weights, label }) {
  const names = Object.keys(weights), seed = Math.floor(Math.random() * 2 ** 31);
  let name = names[names.length - 1], worker = null, busy = false, visible = false, playing = !calm();
  let state = null, step = 0, due = 0, before = 0, edits = []; // edits wait while the worker holds the state
  const channels = () => weights[name].channels;

  const size = range(1, 10, 4), speed = range(5, 120, 40);
  const status = element("output", { "aria-live": "off" }); // it changes all the time
  size.addEventListener("input", () => picture.moveRing());
  const rule = element("select", {}, ...options(names));
  rule.value = name;
  const tool = element("select", {}, ...options(["erase", "seed"]));
  const play = button("", () => {
    playing = !playing;
    refresh();
  });
  const words = `${label}: arrow keys move, space uses the tool, Enter plants a seed`;
  const picture = surface(words, () => Number(size.value), {
    dab: (y, x) => (tool.value === "erase" ? erase : plant)(y, x),
    planted: plant,
  });
  const root = element("div", { class: "nca-demo" }, picture.root,
    element("div", { class: "nca-demo-tools" }, play, button("Restart", restart), labelled("trained to", rule),
      labelled("tool", tool), labelled("size", size), labelled("speed", speed), status),
    element("div", { class: "nca-demo-help" },
      "Drag to erase, double-click to plant a seed; or arrow keys, space and Enter."));

  function edit(change) {
    edits.push(change);
    if (!busy) applyEdits();
  }
  function applyEdits() {
    for (const change of edits) change(state);
    edits = [];
    draw();
  }
  function erase(y, x) {
    const count = channels();
    edit((cells) => disc(GRID, GRID, y, x, Number(size.value), (j, i) => {
      cells.fill(0, (j * GRID + i) * count, (j * GRID + i + 1) * count);
    }));
  }
  function plant(y, x) {
    const first = (y * GRID + x) * channels(), count = channels();
    edit((cells) => cells.fill(0, first, first + ALPHA).fill(1, first + ALPHA, first + count));
  }
  function restart() {
    edit((cells) => {
      cells.fill(0);
      step = 0;
    });
    plant(GRID >> 1, GRID >> 1);
  }
  rule.addEventListener("change", () => {
    name = rule.value;
    if (!busy) stop(); // the next step asks a worker that knows this rule
    refresh();
  });

  function draw() {
    const bytes = new Uint8ClampedArray(4 * GRID * GRID);
    for (let cell = 0, count = channels(); cell < GRID * GRID; cell++) {
      const opacity = Math.min(1, state[cell * count + ALPHA]);
      if (!(opacity > 0)) continue; // colours are stored multiplied by opacity
      for (let c = 0; c < ALPHA; c++) bytes[4 * cell + c] = (255 * state[cell * count + c]) / opacity;
      bytes[4 * cell + ALPHA] = 255 * opacity;
    }
    picture.show(bytes, GRID, GRID);
    status.textContent = `step ${step}`;
  }

  function stop() {
    worker?.terminate();
    worker = null;
    busy = false;
  }
  function advance(steps) {
    const asked = name;
    worker ??= startWorker(address, weights[name], (answer) => {
      ({ state, step } = answer);
      busy = false;
      applyEdits();
      if (asked !== name || !running()) stop();
    }, () => {
      stop();
      playing = false;
      begin(); // the state went with the worker
      status.textContent = NO_WORKER;
    });
    busy = true;
    worker.postMessage({ grow: { state, height: GRID, width: GRID, steps, seed, first: step } }, [state.buffer]);
  }

  const running = () => playing && visible;
  let ticking = 0; // of requestAnimationFrame, which sleeps when the tab does
  function tick(now) {
    due = Math.min(8, due + ((now - before) * speed.value) / 1000); // a slow machine falls behind, no further
    before = now;
    if (due >= 1 && !busy) {
      advance(Math.floor(due));
      due %= 1;
    }
    ticking = requestAnimationFrame(tick);
  }
  function refresh() {
    play.textContent = playing ? "Pause" : "Play";
    cancelAnimationFrame(ticking);
    if (running()) {
      before = performance.now();
      ticking = requestAnimationFrame(tick);
    } else if (!busy) stop();
  }

  function begin() {
    state = new Float32Array(GRID * GRID * channels());
    restart();
    refresh();
  }
  begin();
  const unwatch = watch(root, (now) => {
    visible = now;
    // Who wants less motion sees what has grown, and may press play.
    if (visible && !playing && !step && !busy && calm()) advance(GROWN);
    refresh();
  });
  return [root, () => {
    unwatch();
    playing = false;
    refresh();
    stop();
  }];
}

// ---- Diffusion ----------------------------------------------------------------------------------------------------

const HEIGHT = 40, WIDTH = 40, WIDER = 24, WIDEST = 232;
const MARGIN = 16; // cells around a hole that are looked at to fill it
const REPAINT = { eta: 1, jump: 5, repeats: 2 };

function diffusion({ address, weights, label }) {
  const model = Object.values(weights)[0], colours = model.image_channels;
  let canvas = blank(WIDTH), job = null, seed = 0; // job: what is being computed, and what to return to if stopped

  const size = range(1, 8, 4), view = element("select", {}, ...options(["clean estimate", "noisy image"]));
  const status = element("output"), progress = element("progress", { value: 0, "aria-label": "denoiser calls made" });
  const draw = button("Draw new", () => begin("drawing", blank(WIDTH)));
  const fill = button("Fill the hole", () => begin("filling the hole", canvas));
  const grow = button("Grow wider", () => begin("growing wider", widened(canvas)));
  const halt = button("Stop", () => {
    canvas = job.before;
    end("stopped");
  });
  const shown = surface(`${label}: arrow keys move, space paints a hole`, () => Number(size.value), {
    dab(y, x) {
      if (job || !seed) return;
      disc(HEIGHT, canvas.width, y, x, Number(size.value), (j, i) => empty(canvas, j * canvas.width + i));
      refresh();
    },
  });
  shown.root.append(progress);
  size.addEventListener("input", () => shown.moveRing());
  view.addEventListener("change", () => refresh());
  const root = element("div", { class: "nca-demo" }, shown.root,
    element("div", { class: "nca-demo-tools" }, draw, fill, grow, halt, status),
    element("div", { class: "nca-demo-tools" }, labelled("show", view), labelled("brush", size)),
    element("div", { class: "nca-demo-help" }, "Drag to paint a hole, or use arrow keys and space; then fill it."));

  // A canvas of noise: its hole is everywhere.
  function blank(width) {
    const made = { width, picture: new Float32Array(HEIGHT * width * colours), hole: new Uint8Array(HEIGHT * width) };
    for (let cell = 0; cell < HEIGHT * width; cell++) empty(made, cell);
    return made;
  }
  function empty({ picture, hole }, cell) {
    if (hole[cell]) return;
    hole[cell] = 1;
    const noise = () => 2 * (Math.random() + Math.random() + Math.random()) - 3;
    for (let c = 0; c < colours; c++) picture[cell * colours + c] = noise();
  }
  function widened({ width, picture, hole }) {
    const made = blank(width + WIDER);
    for (let y = 0; y < HEIGHT; y++) {
      made.hole.set(hole.subarray(y * width, (y + 1) * width), y * made.width);
      made.picture.set(picture.subarray(y * width * colours, (y + 1) * width * colours), y * made.width * colours);
    }
    return made;
  }

  // The part of the canvas that filling its hole needs.
  function windowOf({ width, picture, hole }) {
    const cells = [...hole.keys()].filter((cell) => hole[cell]);
    const part = (places, count) => [
      Math.max(0, places.reduce((a, b) => Math.min(a, b)) - MARGIN),
      Math.min(count, places.reduce((a, b) => Math.max(a, b)) + MARGIN + 1),
    ];
    const [top, bottom] = part(cells.map((cell) => Math.floor(cell / width)), HEIGHT);
    const [left, right] = part(cells.map((cell) => cell % width), width);
    const made = { y: top, x: left, height: bottom - top, width: right - left };
    made.cells = Int32Array.from({ length: made.height * made.width }, (_, i) =>
      (top + Math.floor(i / made.width)) * width + left + (i % made.width));
    made.known = Uint8Array.from(made.cells, (cell) => 1 - hole[cell]);
    made.picture = new Float32Array(made.cells.length * colours);
    paste(picture, made.picture, (i) => made.cells[i], (i) => i, made.cells.length);
    return made;
  }
  function paste(from, to, fromCell, toCell, count) {
    for (let i = 0; i < count; i++) {
      for (let c = 0; c < colours; c++) to[toCell(i) * colours + c] = from[fromCell(i) * colours + c];
    }
  }

  function begin(word, next) {
    if (job) job.worker.terminate();
    seed += 1;
    const before = job ? job.before : canvas, { cells, ...part } = windowOf(next);
    canvas = next;
    const worker = startWorker(address, model, (frame) => {
      job.frame = frame;
      progress.value = frame.call / frame.calls;
      if (frame.call < frame.calls) refresh();
      else {
        paste(frame.image, canvas.picture, (i) => i, (i) => cells[i], cells.length);
        canvas.hole.fill(0);
        end(`seed ${seed}, ${frame.calls} calls of the denoiser`);
      }
    }, () => {
      canvas = job.before;
      end(NO_WORKER);
    });
    job = { worker, before, cells, known: part.known, frame: null };
    const resampled = part.known.includes(1) ? REPAINT : {};
    worker.postMessage({ sample: { ...part, ...resampled, seed, steps: model.sampler_steps } });
    status.textContent = `${word}, seed ${seed}`;
    progress.value = 0;
    refresh();
  }
  function end(words) {
    job.worker.terminate();
    job = null;
    status.textContent = words;
    refresh();
  }

  function refresh() {
    const { width, picture, hole } = canvas, values = picture.slice();
    if (job?.frame) {
      const clean = view.value === "clean estimate", { cells, known, frame } = job;
      const inside = [...cells.keys()].filter((i) => !(clean && known[i]));
      paste(clean ? frame.clean : frame.image, values, (i) => inside[i], (i) => cells[inside[i]], inside.length);
    }
    const bytes = new Uint8ClampedArray(4 * HEIGHT * width).fill(255);
    for (let i = 0; i < HEIGHT * width; i++) {
      for (let c = 0; c < 3; c++) bytes[4 * i + c] = 127.5 * (1 + values[i * colours + (colours === 1 ? 0 : c)]);
    }
    shown.show(bytes, HEIGHT, width);
    fill.disabled = Boolean(job) || !seed || !hole.includes(1);
    grow.disabled = Boolean(job) || !seed || width + WIDER > WIDEST;
    halt.disabled = !job;
    progress.style.visibility = job ? "visible" : "hidden";
  }

  refresh();
  const unwatch = watch(root, (visible) => {
    if (visible && !seed && !calm()) begin("drawing", blank(WIDTH));
  });
  return [root, () => {
    unwatch();
    if (job) end("");
  }];
}

const NO_WORKER = "This page may not compute: its browser or server refuses workers.";

const DEMOS = { growing, diffusion };

function render({ model, el }) {
  const address = addressOf(model.get("engine")), weights = JSON.parse(model.get("weights"));
  const [root, leave] = DEMOS[model.get("kind")]({ address, weights, label: model.get("label") });
  root.prepend(element("style", {}, STYLE));
  // Lumino's attribute keeps JupyterLab from taking arrow keys and space for its own.
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  el.append(root);
  return () => {
    leave();
    URL.revokeObjectURL(address);
  };
}

export default { render };
