// Paint on the spectrum of an image, and see what the painted waves make. For anywidget, and for pages.
//
// Frequency 0 is in the middle of the spectrum. What is painted at a frequency is painted at its negative too: both
// belong to the same wave. Traits of the model: image (base64 of bytes, channels last), height, width, channels,
// frequencies (n, how many per axis, 0 included), label.

import { button, copyable, element, labelled, put, range, select, tools } from "./parts.js";
import { bytesOfImage, pictures } from "./pictures.js";
import { disc, surface } from "./surface.js";

const SIDE = 280;

const waves = (count) => [Math.cos, Math.sin].map((of) =>
  Float64Array.from({ length: count }, (_, i) => of((2 * Math.PI * i) / count)));
const place = (k, v, count) => (((k * v) % count) + count) % count;

// The coefficients of an image (channels last) up to frequency n-1, scaled by 1 / (height width): for ky from 1-n to n-1
// and kx from 0 to n-1, at ((ky + n - 1) * n + kx) * channels + c.
function coefficientsOf(image, height, width, channels, n) {
  const [cosY, sinY] = waves(height), [cosX, sinX] = waves(width), rows = 2 * n - 1;
  const across = [0, 1].map(() => new Float64Array(height * n * channels));
  const found = [0, 1].map(() => new Float64Array(rows * n * channels));
  for (let y = 0; y < height; y++) for (let kx = 0; kx < n; kx++) for (let x = 0; x < width; x++) {
    const angle = place(kx, x, width);
    for (let c = 0; c < channels; c++) {
      const value = image[(y * width + x) * channels + c], to = (y * n + kx) * channels + c;
      across[0][to] += value * cosX[angle];
      across[1][to] -= value * sinX[angle];
    }
  }
  for (let ky = 1 - n; ky < n; ky++) for (let y = 0; y < height; y++) {
    const angle = place(ky, y, height), [cos, sin] = [cosY[angle], sinY[angle]];
    for (let i = 0; i < n * channels; i++) {
      const [real, imaginary] = [across[0][y * n * channels + i], across[1][y * n * channels + i]];
      const to = (ky + n - 1) * n * channels + i;
      found[0][to] += (real * cos + imaginary * sin) / (height * width);
      found[1][to] += (imaginary * cos - real * sin) / (height * width);
    }
  }
  return found;
}

// The image of those waves whose cell of the centred spectrum, (2n-1) * (2n-1) numbers, is kept.
function imageOfWaves([re, im], kept, height, width, channels, n) {
  const [cosY, sinY] = waves(height), [cosX, sinX] = waves(width), rows = 2 * n - 1;
  const down = [0, 1].map(() => new Float64Array(height * n * channels));
  for (let ky = 1 - n; ky < n; ky++) for (let kx = 0; kx < n; kx++) {
    const row = ky + n - 1, twice = kx ? 2 : 1; // the waves of -kx are conjugates
    if (!kept[row * rows + kx + n - 1]) continue;
    for (let y = 0; y < height; y++) {
      const angle = place(ky, y, height), [cos, sin] = [cosY[angle], sinY[angle]];
      for (let c = 0; c < channels; c++) {
        const from = (row * n + kx) * channels + c, to = (y * n + kx) * channels + c;
        down[0][to] += twice * (re[from] * cos - im[from] * sin);
        down[1][to] += twice * (re[from] * sin + im[from] * cos);
      }
    }
  }
  const image = new Float32Array(height * width * channels);
  for (let y = 0; y < height; y++) for (let kx = 0; kx < n; kx++) for (let x = 0; x < width; x++) {
    const angle = place(kx, x, width);
    for (let c = 0; c < channels; c++) {
      const from = (y * n + kx) * channels + c;
      image[(y * width + x) * channels + c] += down[0][from] * cosX[angle] - down[1][from] * sinX[angle];
    }
  }
  return image;
}

// Which cells of the centred spectrum a window of `low` frequencies holds, conjugates included.
function windowMask(preset, low, n) {
  const side = 2 * n - 1;
  return Uint8Array.from({ length: side * side }, (_, i) => {
    const ky = Math.floor(i / side) - n + 1, kx = (i % side) - n + 1;
    if (preset === "all" || preset === "none") return Number(preset === "all");
    const inside = Math.abs(ky) < low && Math.abs(kx) < low;
    return Number(inside && (preset === "half plane" || ky * kx >= 0));
  });
}

function render({ model, el }) {
  const [height, width, channels, n] = ["height", "width", "channels", "frequencies"].map((name) => model.get(name));
  const image = Float32Array.from(atob(model.get("image")), (letter) => letter.charCodeAt(0) / 127.5 - 1);
  const coefficients = coefficientsOf(image, height, width, channels, n), side = 2 * n - 1;
  let mask = windowMask("half plane", n >> 1, n);

  const mode = select(["keep painted", "remove painted"]), tool = select(["paint", "erase"]);
  const low = range(1, n, n >> 1), size = range(0, 5, 1), row = pictures({ room: 2 * SIDE });
  const caption = element("output", { "aria-live": "polite" });
  const shown = surface("the spectrum: arrow keys move, space paints", () => Number(size.value), SIDE, {
    dab(y, x) {
      disc(side, side, y, x, Number(size.value), (j, i) => {
        mask[j * side + i] = mask[(side - 1 - j) * side + side - 1 - i] = Number(tool.value === "paint");
      });
      show();
    },
  });
  const begin = (preset) => button(preset, () => {
    mask = windowMask(preset, Number(low.value), n);
    show();
  }, `paint this window of n = the slider's frequencies`);
  const code = copyable(() => [
    "from nca_lib.fourier import image_of_window, spectrum_window", "", "# the half plane of n frequencies, before anything is painted",
    `coefficients = spectrum_window(image[None], "half_plane", ${low.value})`,
    `rebuilt = image_of_window(coefficients, "half_plane", ${height}, ${width})[0]`,
  ].join("\n"));
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") },
    element("div", { class: "nca-pictures" }, element("figure", {}, element("figcaption", {}, "spectrum, frequency 0 in the middle"),
      shown.root), row.root), element("div", {}, caption),
    tools("begin with", begin("quadrant"), begin("half plane"), begin("all"), begin("none"),
      labelled("frequencies n", low, "of the window to begin with")),
    tools(labelled("painted waves", mode, "what is done with them"), labelled("brush", tool), labelled("size", size)),
    element("div", { class: "nca-demo-help" }, "Drag over the spectrum to paint; or arrow keys and space."), code.root);

  const logarithms = Float64Array.from({ length: side * n }, (_, i) => {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += Math.hypot(coefficients[0][i * channels + c], coefficients[1][i * channels + c]);
    return sum / channels;
  });
  const most = Math.max(...logarithms);
  for (let i = 0; i < logarithms.length; i++) logarithms[i] = Math.log(logarithms[i] + 1e-4 * most);
  const [least, largest] = [Math.min(...logarithms), Math.max(...logarithms)];

  function show() {
    const kept = mask.map((m) => Number(Boolean(m) === (mode.value === "keep painted")));
    const bytes = new Uint8ClampedArray(4 * side * side).fill(255);
    for (let i = 0; i < side * side; i++) {
      const ky = Math.floor(i / side) - n + 1, kx = (i % side) - n + 1, s = kx < 0 ? -1 : 1;
      const grey = 255 * ((logarithms[(s * ky + n - 1) * n + s * kx] - least) / (largest - least));
      bytes.set(mask[i] ? [0.55 * grey + 110, 0.7 * grey + 50, 0.5 * grey] : [grey, grey, grey], 4 * i);
    }
    shown.show(bytes, side, side);
    const rebuilt = imageOfWaves(coefficients, kept, height, width, channels, n);
    const picture = (label, values) => ({ label, height, width, bytes: bytesOfImage(values, channels, height * width) });
    row.show([picture("image", image), picture("of the waves kept", rebuilt)]);
    caption.textContent = `${kept.reduce((a, b) => a + b)} of ${side * side} coefficients kept.`;
    code.update();
  }
  mode.addEventListener("input", show);
  low.addEventListener("input", () => {
    mask = windowMask("half plane", Number(low.value), n);
    show();
  });
  size.addEventListener("input", () => shown.moveRing());
  put(el, root);
  show();
  return () => {};
}

export { coefficientsOf, imageOfWaves, windowMask };
export default { render };
