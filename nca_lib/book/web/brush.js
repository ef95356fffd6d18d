// A brush over a picture, for anywidget: paint cells with mouse, finger or keyboard.
//
// Traits of the model: picture (PNG bytes), height and width (cells), mask (height * width bytes, 0 or 1, sent at the
// end of a stroke), label, fleeting (what is painted goes to Python as messages "painted" during the stroke, and does
// not stay), number (of the picture). After drawing a picture, and where it can be seen, it says "drawn": for each
// number once.

import { button, element, labelled, put, range, tools, watch } from "./parts.js";
import { disc, surface } from "./surface.js";

const SIDE = 320; // pixels on the screen, about

const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function render({ model, el }) {
  const fleeting = model.get("fleeting"), shorter = Math.min(model.get("height"), model.get("width"));
  let height = 0, width = 0, mask = null, picture = null; // picture: RGBA bytes
  let painting = false, asked = 0; // asked: whether the next animation frame will send

  const erase = element("input", { type: "checkbox" });
  const size = range(0, Math.max(2, Math.round(shorter / 6)), Math.round(shorter / 24));
  const shown = surface(`${model.get("label")}: arrow keys move, space paints`, () => Number(size.value), SIDE, { dab, stroked });
  const clear = button("Clear", () => {
    mask.fill(0);
    send();
    draw();
  }, "paint nothing");
  const root = element("div", { class: "nca-demo nca-brush" }, shown.root,
    tools(labelled("size", size, "of the brush"), ...(fleeting ? [] : [labelled("erase", erase, "take away what is painted"), clear])),
    element("div", { class: "nca-demo-help" }, "Drag to paint; or arrow keys and space."));

  // What is painted shows as stripes, light and dark: they can be seen on any picture.
  function draw() {
    if (!picture) return;
    const bytes = picture.slice();
    mask.forEach((painted, i) => {
      if (!painted) return;
      const light = (Math.floor(i / width) + (i % width)) % 4 < 2;
      [light ? 255 : 20, light ? 255 : 30, light ? 255 : 60].forEach((value, c) => {
        bytes[4 * i + c] = 0.8 * value + 0.2 * bytes[4 * i + c];
      });
    });
    shown.show(bytes, height, width);
  }

  function dab(y, x) {
    painting = true;
    disc(height, width, y, x, Number(size.value), (j, i) => { mask[j * width + i] = erase.checked ? 0 : 1; });
    draw();
    if (fleeting && !asked) asked = requestAnimationFrame(() => { asked = 0; send(); });
  }
  function stroked() {
    painting = false;
    send();
  }
  function send() {
    if (fleeting) {
      if (mask.includes(1)) model.send({ event: "painted" }, undefined, [mask.slice().buffer]);
      mask.fill(0);
      return;
    }
    model.set("mask", new DataView(mask.slice().buffer));
    model.save_changes();
  }

  const readMask = () => {
    if (painting) return; // the stroke that is being painted wins
    mask = bytesOf(model.get("mask")).slice();
    draw();
  };
  let seen = false, told = null; // told: the number of the picture that was last said to be drawn
  const tell = () => {
    if (!seen || !picture || told === model.get("number")) return;
    told = model.get("number");
    model.send({ event: "drawn" });
  };
  const readPicture = async () => {
    const image = await createImageBitmap(new Blob([bytesOf(model.get("picture"))], { type: "image/png" }));
    if (image.height !== height || image.width !== width) {
      ({ height, width } = image);
      mask = bytesOf(model.get("mask")).slice();
    }
    const context = element("canvas", { height, width }).getContext("2d");
    context.drawImage(image, 0, 0);
    picture = context.getImageData(0, 0, width, height).data;
    draw();
    requestAnimationFrame(tell); // a hidden tab has no frames
  };
  const unwatch = watch(root, (visible) => {
    seen = visible;
    tell();
  });
  size.addEventListener("input", () => shown.moveRing());
  model.on("change:mask", readMask);
  model.on("change:number", readPicture);
  put(el, root);
  readPicture();
  return () => {
    unwatch();
    model.off("change:mask", readMask);
    model.off("change:number", readPicture);
  };
}

export default { render };
