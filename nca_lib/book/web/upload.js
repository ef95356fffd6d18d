// A picture of one's own, for anywidget: chosen from disk or dropped here, refused in a line if it is too heavy.
//
// Traits of the model: value (the file's bytes; none: no picture), most (bytes), label.

import { button, element, labelled, put, tools } from "./parts.js";

function render({ model, el }) {
  const most = model.get("most"), file = element("input", { type: "file", accept: "image/*,.tif,.tiff" });
  const said = element("output"), clear = button("Use none", () => send(new Uint8Array(), ""), "back to the images that come with the model");
  const root = element("div", { class: "nca-demo" },
    tools(labelled(model.get("label"), file, `any kind of image, at most ${most / 1e6} MB; or drop one here`), clear, said));

  function send(bytes, words) {
    model.set("value", new DataView(bytes.buffer));
    model.save_changes();
    said.textContent = words;
    clear.disabled = !bytes.length;
    if (!bytes.length) file.value = "";
  }
  async function take([chosen]) {
    if (!chosen) return;
    const size = `${(chosen.size / 1e6).toFixed(1)} MB`;
    if (chosen.size > most) said.textContent = `${chosen.name} has ${size}: at most ${most / 1e6} MB`;
    else send(new Uint8Array(await chosen.arrayBuffer()), `${chosen.name}, ${size}`);
  }
  file.addEventListener("change", () => take(file.files));
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would copy the file into its folder
    take(event.dataTransfer.files);
  });
  put(el, root);
  clear.disabled = !model.get("value").byteLength;
}

export default { render };
