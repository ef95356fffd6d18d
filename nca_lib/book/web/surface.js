// A picture of cells to paint on with mouse, finger or keyboard.

import { element } from "./parts.js";

const SURFACE = `
.nca-demo-surface { position: relative; overflow: hidden; max-width: 100%; width: fit-content;
  outline: 1px solid var(--line); outline-offset: -1px; background: #fff; }
.nca-demo-surface:has(canvas:focus-visible) { outline: 3px solid var(--accent); }
.nca-demo-surface canvas { display: block; max-width: 100%; height: auto; touch-action: none; cursor: crosshair;
  image-rendering: pixelated; }
.nca-demo .nca-demo-surface canvas:focus-visible { outline: none; }
.nca-demo-ring { position: absolute; box-sizing: border-box; border: 2px solid #fff; border-radius: 50%;
  box-shadow: 0 0 0 1px #000, inset 0 0 0 1px #000; transform: translate(-50%, -50%);
  pointer-events: none; visibility: hidden; }
.nca-demo canvas:hover + .nca-demo-ring, .nca-demo canvas:focus-visible + .nca-demo-ring { visibility: visible; }
.nca-demo-surface progress { position: absolute; left: 0; bottom: 0; width: 100%; height: 6px; pointer-events: none;
  accent-color: var(--accent); }
`;

// `side` is the height on the screen, at most. `dab(y, x)` is called at every cell of a stroke,
// `planted(y, x)` at a double click or Enter, `stroked()` at the end of a stroke.
function surface(label, size, side, { dab, planted = () => {}, stroked = () => {} }) {
  const canvas = element("canvas", { tabindex: 0, role: "application", "aria-label": label });
  const ring = element("div", { class: "nca-demo-ring" });
  const root = element("div", { class: "nca-demo-surface" }, element("style", {}, SURFACE), canvas, ring);
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
      canvas.style.width = `${Math.max(1, Math.floor(side / height)) * width}px`;
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

export { disc, surface };
