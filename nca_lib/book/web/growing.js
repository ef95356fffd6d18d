// The growing automaton: it lives in a worker that exists only while it runs. For anywidget, and for pages.
//
// Traits of the model: engine (the text of the worker), weights (name to exported model), label.

import { button, calm, element, labelled, put, range, select, tools, watch } from "./parts.js";
import { disc, surface } from "./surface.js";
import { NO_WORKER, addressOf, startWorker } from "./workers.js";

const GRID = 48, SIDE = 400, OPACITY = 3, GROWN = 90; // GROWN: steps until there is something to see

function growing({ address, weights, label }) {
  const names = Object.keys(weights), seed = Math.floor(Math.random() * 2 ** 31);
  let name = names[names.length - 1], worker = null, busy = false, visible = false, playing = !calm();
  let state = null, step = 0, due = 0, before = 0, edits = []; // edits wait while the worker holds the state
  const channels = () => weights[name].channels;

  const size = range(1, 10, 4), speed = range(5, 120, 40);
  const status = element("output", { "aria-live": "off" }); // it changes all the time
  size.addEventListener("input", () => picture.moveRing());
  const rule = select(names);
  rule.value = name;
  const tool = select(["erase", "seed"]);
  const play = button("", () => {
    playing = !playing;
    refresh();
  });
  const words = `${label}: arrow keys move, space uses the tool, Enter plants a seed`;
  const picture = surface(words, () => Number(size.value), SIDE, {
    dab: (y, x) => (tool.value === "erase" ? erase : plant)(y, x),
    planted: plant,
  });
  const root = element("div", { class: "nca-demo" }, picture.root,
    tools(play, button("Restart", restart), labelled("trained to", rule),
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
    edit((cells) => cells.fill(0, first, first + OPACITY).fill(1, first + OPACITY, first + count));
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
      const opacity = Math.min(1, state[cell * count + OPACITY]);
      if (!(opacity > 0)) continue; // colours are stored multiplied by opacity
      for (let c = 0; c < OPACITY; c++) bytes[4 * cell + c] = (255 * state[cell * count + c]) / opacity;
      bytes[4 * cell + OPACITY] = 255 * opacity;
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

function render({ model, el }) {
  const address = addressOf(model.get("engine"));
  const [root, leave] = growing({ address, weights: model.get("weights"), label: model.get("label") });
  put(el, root);
  return () => {
    leave();
    URL.revokeObjectURL(address);
  };
}

export default { render };
