// One message, sent with the same rule in image space and in frequency space. For anywidget, and for pages.
//
// The rule adds to each cell the weighted mean of its 3x3 neighbourhood. In image space it begins with a 1 in one cell.
// In frequency space the cells are the Fourier coefficients of that 1, and each counts in the image as strongly as the
// rule has reached it, beginning with frequency 0 in the first step. Traits of the model: size, label.

import { copyable, element, labelled, put, range, tools } from "./parts.js";
import { pictures } from "./pictures.js";

const ROUNDING = 1e-9, PAPER = [242, 242, 245], INK = [194, 87, 26];

// What the message is in both spaces after each of 0 to `steps` steps: [{ local, everywhere }], size * size numbers.
function messageStates(y, x, size, steps) {
  let local = new Float64Array(size * size), told = new Float64Array(size * size);
  local[y * size + x] = 1;
  const found = [{ local, everywhere: local }];
  for (let k = 0; k < steps; k++) {
    local = spread(local, size, false);
    if (k === 0) told[0] = 1;
    else told = spread(told, size, true);
    found.push({ local, everywhere: imageOf(told, y, x, size) });
  }
  return found;
}

function spread(state, size, circular) {
  const next = state.slice(), weights = [1, 2, 1];
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      for (let dy = -1; dy <= 1; dy++) {
        for (let dx = -1; dx <= 1; dx++) {
          let v = y + dy, u = x + dx;
          if (circular) [v, u] = [(v + size) % size, (u + size) % size];
          if (v < 0 || u < 0 || v >= size || u >= size) continue;
          next[y * size + x] += (weights[dy + 1] * weights[dx + 1] * state[v * size + u]) / 16;
        }
      }
    }
  }
  return next;
}

// The image of a 1 in cell (y, x) whose coefficients count as `told` says. `told` is symmetric, and so its transform is
// real: it is the message around the source.
function imageOf(told, y, x, size) {
  const cosine = Float64Array.from({ length: size }, (_, i) => Math.cos((2 * Math.PI * i) / size));
  const sine = Float64Array.from({ length: size }, (_, i) => Math.sin((2 * Math.PI * i) / size));
  const real = new Float64Array(size * size), imaginary = new Float64Array(size * size);
  for (let ky = 0; ky < size; ky++) {
    for (let u = 0; u < size; u++) {
      for (let kx = 0; kx < size; kx++) {
        real[ky * size + u] += told[ky * size + kx] * cosine[(kx * u) % size];
        imaginary[ky * size + u] += told[ky * size + kx] * sine[(kx * u) % size];
      }
    }
  }
  const image = new Float64Array(size * size);
  for (let v = 0; v < size; v++) {
    for (let u = 0; u < size; u++) {
      let sum = 0;
      for (let ky = 0; ky < size; ky++) {
        const angle = (ky * v) % size;
        sum += real[ky * size + u] * cosine[angle] - imaginary[ky * size + u] * sine[angle];
      }
      image[((v + y) % size) * size + ((u + x) % size)] = sum / (size * size);
    }
  }
  return image;
}

function render({ model, el }) {
  const size = model.get("size"), middle = size >> 1;
  let y = middle, x = middle, states = [];
  const k = range(0, size - 1, size >> 2), caption = element("output", { "aria-live": "polite" });
  k.className = "nca-demo-wide";
  const row = pictures({ onCell: (_, toY, toX) => {
    [y, x, states] = [toY, toX, []];
    show();
  } });
  const code = copyable(() => [
    "from nca_lib.book.players import message_states", "",
    `states = list(message_states(${y}, ${x}, ${size}, ${k.value}))`, "in_image_space, in_frequency_space = states[-1]",
  ].join("\n"));
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") }, row.root,
    element("div", {}, caption), tools(labelled("steps k", k, "how many steps the rule has made")),
    element("div", { class: "nca-demo-help" }, "Click a cell to send the message from there; or arrow keys and Enter."),
    code.root);

  function picture(label, message, nothing) {
    const bytes = new Uint8ClampedArray(4 * size * size).fill(255), most = message.reduce((a, b) => Math.max(a, b));
    let heard = 0;
    message.forEach((value, i) => {
      const strength = value > nothing ? 0.25 + 0.75 * (value / most) ** 0.3 : 0;
      heard += value > nothing;
      for (let c = 0; c < 3; c++) bytes[4 * i + c] = PAPER[c] + strength * (INK[c] - PAPER[c]);
    });
    return [{ label, bytes, height: size, width: size }, heard];
  }
  function show() {
    const step = Number(k.value);
    if (!states.length) states = messageStates(y, x, size, size - 1);
    const [left, reached] = picture("in image space", states[step].local, 0);
    const [right, allReached] = picture("in frequency space", states[step].everywhere, ROUNDING);
    row.show([left, right]);
    caption.textContent = `After ${step} steps: ${reached} cells in image space, ${allReached} in frequency space.`;
    code.update();
  }
  k.addEventListener("input", show);
  put(el, root);
  show();
  return () => {};
}

export { messageStates };
export default { render };
