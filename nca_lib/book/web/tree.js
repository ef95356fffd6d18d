// Branches of a sample as a tree of thumbnails: a row for each, beginning where it left another. For anywidget.
//
// Traits of the model: branches ([{ parent, call, words, thumbs: [{ call, src }] }]), steps (calls of a whole way), chosen
// ([branch, call]). It says { branch, call } when a thumbnail is chosen.

import { element, put } from "./parts.js";

const TREE = `
.nca-tree { position: relative; overflow-x: auto; max-width: 100%; }
.nca-tree svg { position: absolute; left: 0; top: 0; }
.nca-tree button { position: absolute; padding: 0 !important; min-height: 0 !important; line-height: 0;
  border-width: 2px !important; }
.nca-tree button[aria-pressed=true] { border-color: var(--accent) !important; box-shadow: 0 0 0 2px var(--accent); }
.nca-tree img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.nca-tree span { position: absolute; font-size: 0.85em; white-space: nowrap; transform: translateY(-50%); }
`;
const SIDE = 44, ROW = 58, STRIDE = 58, LEFT = 8, SVG = "http://www.w3.org/2000/svg";

function render({ model, el }) {
  const stage = element("div", { class: "nca-tree" });
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": "the branches as a tree" }, element("style", {}, TREE),
    stage, element("div", { class: "nca-demo-help" }, "Each row is a branch, from left to right its clean estimates; choose one to go there."));

  function draw() {
    const rows = model.get("branches"), [branch, call] = model.get("chosen"), steps = model.get("steps");
    const focused = stage.contains(stage.getRootNode().activeElement);
    const columns = [...new Set(rows.flatMap((row) => row.thumbs.map((thumb) => thumb.call)))].sort((a, b) => a - b);
    const x = (at) => LEFT + columns.indexOf(at) * STRIDE, y = (row) => row * ROW + ROW / 2;
    const width = LEFT + columns.length * STRIDE, lines = document.createElementNS(SVG, "svg");
    lines.setAttribute("width", width);
    lines.setAttribute("height", rows.length * ROW);
    const line = (points) => {
      const made = document.createElementNS(SVG, "polyline");
      made.setAttribute("points", points.map((point) => point.join(",")).join(" "));
      made.setAttribute("style", "fill: none; stroke: currentColor; stroke-opacity: 0.5; stroke-width: 2");
      lines.append(made);
    };
    const parts = rows.flatMap((row, r) => {
      const centre = (at) => x(at) + SIDE / 2, ends = row.thumbs.map((thumb) => thumb.call), last = ends[ends.length - 1];
      line([[centre(ends[0]), y(r)], [centre(last), y(r)]]);
      if (row.parent !== null) line([[centre(row.call), y(row.parent)], [centre(row.call), y(r)]]);
      const words = element("span", { style: `left: ${width + 6}px; top: ${y(r)}px` },
        `${r + 1}: ${row.words}${row.parent === null ? "" : `, from ${row.parent + 1} after call ${row.call}`}`);
      return [...row.thumbs.map((thumb) => {
        const made = element("button", { type: "button", "aria-label": `branch ${r + 1}, call ${thumb.call}`, title: `call ${thumb.call} of ${steps}`,
          "aria-pressed": r === branch && thumb.call === call,
          style: `left: ${x(thumb.call)}px; top: ${y(r) - SIDE / 2}px; width: ${SIDE}px; height: ${SIDE}px` },
          element("img", { src: thumb.src, alt: "" }));
        made.addEventListener("click", () => model.send({ branch: r, call: thumb.call }));
        return made;
      }), words];
    });
    stage.style.height = `${rows.length * ROW}px`;
    stage.replaceChildren(lines, ...parts);
    if (focused) stage.querySelector("[aria-pressed=true]")?.focus();
  }
  for (const trait of ["branches", "chosen"]) model.on(`change:${trait}`, draw);
  put(el, root);
  draw();
  return () => { for (const trait of ["branches", "chosen"]) model.off(`change:${trait}`, draw); };
}

export default { render };
