// Inside one call of the denoiser: the automaton's steps, its hidden channels, and how far a cell's influence comes.

import { element, labelled, range, tools } from "./parts.js";
import { bytesOfImage, pictures } from "./pictures.js";
import { startWorker } from "./workers.js";

// The first three principal components of vectors (`count` numbers each): { mean, axes: [{ axis, deviation }] }.
function principal(vectors, count) {
  const cells = vectors.length / count, mean = new Float64Array(count), axes = [];
  vectors.forEach((v, i) => { mean[i % count] += v / cells; });
  const covariance = Array.from({ length: count }, () => new Float64Array(count));
  for (let cell = 0; cell < cells; cell++) {
    for (let a = 0; a < count; a++) {
      const left = (vectors[cell * count + a] - mean[a]) / cells;
      for (let b = 0; b < count; b++) covariance[a][b] += left * (vectors[cell * count + b] - mean[b]);
    }
  }
  for (let number = 0; number < Math.min(3, count); number++) {
    let axis = Float64Array.from({ length: count }, (_, i) => 1 + (i === number)), variance = 0;
    for (let turn = 0; turn < 60; turn++) { // power iteration; what was found before is taken out
      const next = covariance.map((row) => row.reduce((sum, v, i) => sum + v * axis[i], 0));
      variance = Math.hypot(...next);
      axis = Float64Array.from(next, (v) => v / (variance || 1));
    }
    for (let a = 0; a < count; a++) for (let b = 0; b < count; b++) covariance[a][b] -= variance * axis[a] * axis[b];
    axes.push({ axis, deviation: Math.sqrt(variance) || 1 });
  }
  return { mean, axes };
}

// `current()` gives { image, height, width, t, seed } or null, what the next call is told.
function insideView(address, model, current) {
  const colours = model.image_channels, hidden = model.channels - 2 * colours;
  const k = range(1, model.steps, model.steps), caption = element("output", { "aria-live": "polite" });
  let worker = null, found = null, asked = null, basis = null, cell = null;
  const row = pictures({ onCell: (_, y, x) => {
    cell = [y, x];
    ask();
  } });
  const root = element("details", {}, element("summary", {}, "Inside the next call"), row.root, element("div", {}, caption),
    tools(labelled("step k", k, "of the automaton, within one call")),
    element("div", { class: "nca-demo-help" }, "Click a cell to see how far its influence comes; or arrow keys and Enter."));

  function stop() {
    worker?.terminate();
    worker = null;
  }
  function ask() {
    stop();
    if (!root.open) return;
    asked = current();
    caption.textContent = asked ? "computing ..." : "The image is finished: go back to see inside a call.";
    if (!asked) return;
    if (!cell || cell[0] >= asked.height || cell[1] >= asked.width) cell = [asked.height >> 1, asked.width >> 1];
    worker = startWorker(address, model, (answer) => {
      found = answer.inside;
      basis = principal(found[found.length - 1].hidden, hidden);
      stop();
      show();
    }, stop);
    worker.postMessage({ inside: { ...asked, cell } });
  }
  function show() {
    if (!found) return;
    const { height, width, t } = asked, { clean, hidden: states, influence } = found[k.value - 1], cells = height * width;
    const components = new Float32Array(3 * cells), told = new Float32Array(3 * cells);
    for (let i = 0; i < cells; i++) {
      basis.axes.forEach(({ axis, deviation }, c) => {
        for (let h = 0; h < hidden; h++) components[3 * i + c] += (axis[h] * (states[i * hidden + h] - basis.mean[h])) / (2 * deviation);
      });
      const heard = influence[i] > 1e-7 ? Math.min(1, Math.max(0.15, 1 + Math.log10(influence[i]) / 7)) : 0;
      told.set([0.92 - 0.37 * heard, 0.92 - 1.77 * heard, 0.94 - 1.69 * heard], 3 * i);
    }
    const picture = (label, values, channels) => ({ label, height, width, bytes: bytesOfImage(values, channels, cells) });
    row.show([picture("clean estimate", clean, colours), picture("hidden channels", components, 3), picture("influence", told, 3)]);
    const reached = influence.reduce((sum, v) => sum + (v > 1e-7), 0);
    caption.textContent = `t = ${t}, after step ${k.value} of ${model.steps}: the hidden channels' first three principal ` +
      `components as colours; cell y ${cell[0]}, x ${cell[1]} has influenced ${reached} cells.`;
  }
  k.addEventListener("input", show);
  root.addEventListener("toggle", ask);
  return { root, changed: ask, stop };
}

export { insideView, principal };
