// A row of labelled pictures at one zoom: the cell under the pointer tells its value, and may be chosen.

import { decimals, element, labelled, select, tools } from "./parts.js";

const PICTURES = `
.nca-pictures { display: flex; flex-wrap: wrap; gap: 0.6em; align-items: flex-start; }
.nca-pictures figure { margin: 0; max-width: 100%; }
.nca-pictures figcaption { font-size: 0.9em; line-height: 1.3; margin: 0 0 0.2em; max-width: none; text-align: left;
  color: inherit; }
.nca-pictures canvas { display: block; max-width: 100%; height: auto; image-rendering: pixelated;
  outline: 1px solid var(--line); outline-offset: -1px; }
.nca-pictures.nca-choosing canvas { cursor: crosshair; touch-action: manipulation; }
.nca-values { min-height: 1.4em; font-variant-numeric: tabular-nums; opacity: 0.85; }
`;
const ZOOMS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16], ROOM = 560; // ROOM: pixels for a row and for a picture's height

// A picture is { label, src } (a data address of an image), or { label, bytes, height, width } (RGBA).
// `onCell(picture, y, x)`, if given, is called with the number of a picture and a cell of it.
function pictures({ onCell = null, room = ROOM } = {}) {
  const stage = element("div", { class: `nca-pictures${onCell ? " nca-choosing" : ""}` });
  const values = element("output", { class: "nca-values", "aria-live": "off" });
  const zoom = select(ZOOMS.map((z) => `${z}`)), figures = [];
  const root = element("div", {}, element("style", {}, PICTURES), stage,
    tools(labelled("zoom", zoom, "screen pixels for each cell"), values));
  let chosen = 0, tallest = 0, shown = [];

  function fit() {
    for (const { canvas } of figures) canvas.style.width = `${canvas.width * chosen}px`;
    tallest = Math.max(tallest, stage.scrollHeight); // the page below stays where it is
    stage.style.minHeight = `${Math.min(tallest, 700)}px`;
  }
  zoom.addEventListener("change", () => {
    chosen = Number(zoom.value);
    tallest = 0;
    stage.style.minHeight = "";
    fit();
  });

  function cellAt(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const place = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    return [place((event.clientY - box.top) / box.height, canvas.height),
      place((event.clientX - box.left) / box.width, canvas.width)];
  }
  function tell(canvas, name, [y, x]) {
    const [r, g, b] = canvas.getContext("2d").getImageData(x, y, 1, 1).data;
    const numbers = r === g && g === b ? [r] : [r, g, b];
    values.textContent = `${name}, y ${y}, x ${x}: ${numbers.map((v) => decimals(v / 127.5 - 1, 2)).join(", ")}`;
  }
  function figure(index) {
    const canvas = element("canvas", { role: "img" }), caption = element("figcaption");
    const root = element("figure", {}, caption, canvas), cursor = [0, 0];
    canvas.addEventListener("pointermove", (event) => tell(canvas, caption.textContent, cellAt(canvas, event)));
    canvas.addEventListener("pointerleave", () => { values.textContent = ""; });
    if (onCell) {
      canvas.tabIndex = 0;
      canvas.addEventListener("click", (event) => onCell(index, ...cellAt(canvas, event)));
      canvas.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (move) {
          cursor[0] = Math.min(canvas.height - 1, Math.max(0, cursor[0] + move[0]));
          cursor[1] = Math.min(canvas.width - 1, Math.max(0, cursor[1] + move[1]));
          tell(canvas, caption.textContent, cursor);
        } else if (event.key === "Enter" || event.key === " ") onCell(index, ...cursor);
        else return;
        event.preventDefault();
        event.stopPropagation();
      });
    }
    stage.append(root);
    return { root, canvas, caption, cursor };
  }

  async function ready(picture) {
    if (picture.bytes) return;
    if (!picture.image) {
      picture.image = new Image();
      picture.image.src = picture.src;
    }
    await picture.image.decode();
    picture.height = picture.image.naturalHeight;
    picture.width = picture.image.naturalWidth;
  }
  function paint({ canvas, caption, cursor }, picture) {
    const { bytes, height, width, label } = picture;
    if (canvas.height !== height || canvas.width !== width) {
      Object.assign(canvas, { height, width });
      Object.assign(cursor, [height >> 1, width >> 1]);
    }
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (bytes) context.putImageData(new ImageData(bytes, width, height), 0, 0);
    else context.drawImage(picture.image, 0, 0);
    if (caption.textContent !== label) caption.textContent = label;
    canvas.setAttribute("aria-label", onCell ? `${label}: arrow keys and Enter choose a cell` : label);
  }

  // What is asked for last is shown, whichever is decoded first.
  async function show(list) {
    shown = list;
    if (list.some((picture) => picture.src && !picture.height)) await Promise.all(list.map(ready));
    if (shown !== list) return;
    while (figures.length < list.length) figures.push(figure(figures.length));
    while (figures.length > list.length) figures.pop().root.remove();
    list.forEach((picture, i) => paint(figures[i], picture));
    if (!chosen && list.length) {
      const across = Math.max(list.slice(0, 3).reduce((sum, { width }) => sum + width, 0), list[0].height);
      chosen = ZOOMS.filter((z) => z * across <= room).pop() ?? 1;
      zoom.value = chosen;
    }
    fit();
  }
  return { root, show, zoomTo: (z) => { zoom.value = chosen = z; fit(); } };
}

// RGBA bytes of an image, channels last, in [-1, 1].
function bytesOfImage(values, channels, cells) {
  const bytes = new Uint8ClampedArray(4 * cells).fill(255);
  for (let i = 0; i < cells; i++) {
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = 127.5 * (1 + values[i * channels + (channels === 1 ? 0 : c)]);
  }
  return bytes;
}

export { bytesOfImage, pictures };
