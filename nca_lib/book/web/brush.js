// A brush over a picture, for anywidget: paint cells with mouse, finger or keyboard. No dependencies.
//
// Traits of the model: picture (PNG bytes), height and width (cells), mask (height * width bytes, 0 or 1, sent at
// the end of a stroke), label,
// fleeting (what is painted goes to Python as messages "painted" during the stroke, and does not stay), number (of the
// picture). After drawing a picture, and where it can be seen, it says "drawn": for each number once.

const STYLE = `
.nca-brush { display: inline-block; max-width: 100%; margin: 2px 14px 6px 2px; color: var(--jp-ui-font-color1, inherit);
  font: var(--jp-ui-font-size1, 0.85rem) / 1.4 var(--jp-ui-font-family, system-ui, sans-serif); }
.nca-brush canvas { display: block; width: 100%; height: auto; touch-action: none; cursor: crosshair;
  image-rendering: pixelated; outline: 1px solid var(--jp-border-color1, #8888); outline-offset: -1px; }
.nca-brush canvas:focus-visible { outline: 3px solid var(--jp-brand-color1, #4c5fa8); }
.nca-brush-tools { display: flex; flex-wrap: wrap; gap: 0.3em 0.9em; align-items: center; margin-top: 0.4em; }
.nca-brush-tools label { display: inline-flex; gap: 0.3em; align-items: center; }
.nca-brush-tools input[type=range] { width: 6em; }
.nca-brush button { font: inherit; color: inherit; padding: 0.1em 0.7em; cursor: pointer;
  background: var(--jp-layout-color2, #8883); border: 1px solid var(--jp-border-color1, #8888); border-radius: 3px; }
.nca-brush-help { font-size: 0.9em; opacity: 0.75; }
`;
const SIDE = 320; // pixels on the screen, about

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function render({ model, el }) {
  const height = model.get("height"), width = model.get("width");
  const fleeting = model.get("fleeting");
  const scale = Math.max(1, Math.floor(SIDE / Math.max(height, width)));
  const mask = new Uint8Array(height * width);
  const cursor = { y: height >> 1, x: width >> 1 };
  let picture = null;
  let last = null; // the cell where the stroke is
  let asked = 0; // whether the next animation frame will send

  const canvas = element("canvas", {
    width: width * scale, height: height * scale, tabindex: 0, role: "application",
    "aria-label": `${model.get("label")}: arrow keys move, space paints`,
  });
  const erase = element("input", { type: "checkbox" });
  const most = Math.max(3, Math.round(Math.min(height, width) / 3));
  const size = element("input", { type: "range", min: 1, max: most, step: 1 });
  size.value = Math.max(1, Math.round(Math.min(height, width) / 12));
  const clear = element("button", { type: "button" }, "Clear");
  const tools = element("div", { class: "nca-brush-tools" }, element("label", {}, "size", size));
  if (!fleeting) tools.append(element("label", {}, erase, "erase"), clear);
  // Lumino's attribute keeps JupyterLab from taking arrow keys and space for its own.
  const root = element("div", { class: "nca-brush", "data-lm-suppress-shortcuts": "true" },
    element("style", {}, STYLE), canvas, tools, element("div", { class: "nca-brush-help" }, "Drag to paint; or arrow keys and space."));
  root.style.width = `${width * scale}px`;
  el.append(root);

  // Stripes, light and dark: they can be seen on any picture.
  function stripes(context) {
    const tile = element("canvas", { width: 8, height: 8 }), brush = tile.getContext("2d");
    for (let i = 0; i < 64; i++) {
      brush.fillStyle = ((i % 8) + (i >> 3)) % 8 < 4 ? "rgba(255, 255, 255, 0.8)" : "rgba(20, 30, 60, 0.8)";
      brush.fillRect(i % 8, i >> 3, 1, 1);
    }
    return context.createPattern(tile, "repeat");
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.fillStyle = stripes(context);
    for (let i = 0; i < mask.length; i++) {
      if (mask[i]) context.fillRect((i % width) * scale, Math.floor(i / width) * scale, scale, scale);
    }
    if (document.activeElement === canvas || canvas.getRootNode().activeElement === canvas) {
      context.strokeStyle = "#fff";
      context.lineWidth = 1;
      context.strokeRect(cursor.x * scale + 0.5, cursor.y * scale + 0.5, scale - 1, scale - 1);
    }
  }

  function dab(y, x) {
    const value = erase.checked ? 0 : 1, radius = Number(size.value) / 2, reach = Math.floor(radius);
    for (let j = Math.max(0, y - reach); j <= Math.min(height - 1, y + reach); j++) {
      for (let i = Math.max(0, x - reach); i <= Math.min(width - 1, x + reach); i++) {
        if ((j - y) ** 2 + (i - x) ** 2 > radius * radius) continue;
        mask[j * width + i] = value;
      }
    }
  }

  function line(from, to) { // a fast pointer skips cells: dab at each between
    const steps = Math.max(1, Math.abs(to.y - from.y), Math.abs(to.x - from.x));
    for (let k = 0; k <= steps; k++) {
      dab(Math.round(from.y + ((to.y - from.y) * k) / steps), Math.round(from.x + ((to.x - from.x) * k) / steps));
    }
  }

  function send() {
    if (fleeting) {
      model.send({ event: "painted" }, undefined, [mask.slice().buffer]);
      mask.fill(0);
      return;
    }
    model.set("mask", new DataView(mask.slice().buffer));
    model.save_changes();
  }

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    return {
      y: Math.floor(((event.clientY - box.top) / box.height) * height),
      x: Math.floor(((event.clientX - box.left) / box.width) * width),
    };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    last = cellAt(event);
    line(last, last);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const cell = cellAt(event);
    line(last, cell);
    last = cell;
    draw();
    if (fleeting && !asked) asked = requestAnimationFrame(() => { asked = 0; send(); });
  });
  const end = () => {
    if (!last) return;
    last = null;
    send();
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);

  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (move) {
      cursor.y = Math.min(height - 1, Math.max(0, cursor.y + move[0]));
      cursor.x = Math.min(width - 1, Math.max(0, cursor.x + move[1]));
    } else if (event.key === " ") {
      dab(cursor.y, cursor.x);
      send();
    } else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  });
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  clear.addEventListener("click", () => {
    mask.fill(0);
    send();
    draw();
  });

  const readMask = () => {
    if (last) return; // the stroke that is being painted wins
    mask.set(bytesOf(model.get("mask")));
    draw();
  };
  let seen = false, told = null; // told: the number of the picture that was last said to be drawn
  const tell = () => {
    if (!seen || !picture || told === model.get("number")) return;
    told = model.get("number");
    model.send({ event: "drawn" });
  };
  const readPicture = async () => {
    picture = await createImageBitmap(new Blob([bytesOf(model.get("picture"))], { type: "image/png" }));
    draw();
    requestAnimationFrame(tell); // a hidden tab has no frames
  };
  const observer = new IntersectionObserver((entries) => {
    seen = entries[entries.length - 1].isIntersecting;
    tell();
  });
  observer.observe(canvas);
  model.on("change:mask", readMask);
  model.on("change:number", readPicture);
  readMask();
  readPicture();
  return () => {
    observer.disconnect();
    model.off("change:mask", readMask);
    model.off("change:number", readPicture);
  };
}

export default { render };
