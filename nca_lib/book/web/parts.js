// What the components share: elements, the page's theme, being in view. No dependencies.

const THEME = `
.nca-demo { --ink: var(--jp-ui-font-color1, var(--pst-color-text-base, CanvasText));
  --line: var(--jp-border-color1, var(--pst-color-border, #8888));
  --accent: var(--jp-brand-color1, var(--pst-color-primary, #4c5fa8));
  --face: var(--jp-layout-color2, var(--pst-color-surface, #8882));
  max-width: 46rem; margin: 1em 0; color: var(--ink);
  font: var(--jp-ui-font-size1, 0.9rem) / 1.4 var(--jp-ui-font-family, inherit); }
.nca-demo-tools { display: flex; flex-wrap: wrap; gap: 0.5em 0.9em; align-items: center; margin-top: 0.6em; }
.nca-demo label { display: inline-flex; gap: 0.4em; align-items: center; max-width: 100%; }
.nca-demo [hidden] { display: none; }
.nca-demo input[type=range] { width: 6.5em; accent-color: var(--accent); }
.nca-demo label:has(.nca-demo-wide) { flex: 1 1 16em; max-width: 30em; white-space: nowrap; }
.nca-demo input.nca-demo-wide { flex: 1; min-width: 5em; }
.nca-demo input[type=number] { width: 4.5em; }
.nca-demo :is(button, select, input[type=number]) { font: inherit; color: inherit; background: var(--face);
  padding: 0.25em 0.8em; border: 1px solid var(--line); border-radius: 4px; min-height: 2.1em; }
.nca-demo :is(select, input[type=number]) { padding: 0.25em 0.4em; max-width: 100%; min-width: 0; }
.nca-demo select option { color: initial; }
.nca-demo button { cursor: pointer; }
.nca-demo button:disabled { opacity: 0.45; cursor: default; }
.nca-demo :is(button, select, input, canvas, summary):focus-visible { outline: 3px solid var(--accent);
  outline-offset: 1px; }
.nca-demo output { font-variant-numeric: tabular-nums; }
.nca-demo-help { font-size: 0.9em; opacity: 0.8; margin-top: 0.4em; }
.nca-demo summary { cursor: pointer; margin-top: 0.5em; }
.nca-demo pre.nca-demo-code { font-size: 0.85em; padding: 0.6em; margin: 0.4em 0; overflow-x: auto; color: inherit;
  background: var(--face); border: 1px solid var(--line); border-radius: 4px; }
@media (pointer: coarse) {
  .nca-demo :is(button, select, input, input[type=number], summary) { min-height: 40px; }
  .nca-demo input[type=range] { height: 40px; }
}
@media print { .nca-demo-tools, .nca-demo-help, .nca-demo details { display: none; } }
`;

// JupyterLab takes arrow keys and space from what has the focus, unless it says Lumino's attribute itself.
const CONTROLS = new Set(["button", "canvas", "input", "select", "summary"]);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  if (CONTROLS.has(tag)) made.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const labelled = (text, control, title = "") => element("label", title ? { title } : {}, text, control);
const range = (low, high, value, step = 1) => element("input", { type: "range", min: low, max: high, step, value });
const number = (low, high, value) => element("input", { type: "number", min: low, max: high, step: 1, value });
const select = (names) => element("select", {}, ...names.map((name) => element("option", { value: name }, name)));
const decimals = (value, digits) => value.toFixed(digits).replace(/^-(0\.0*)$/, "$1"); // no "-0.0"
const tools = (...children) => element("div", { class: "nca-demo-tools" }, ...children);

function button(text, action, title = "") {
  const made = element("button", { type: "button", ...(title ? { title } : {}) }, text);
  made.addEventListener("click", action);
  return made;
}

// The library's lines that make what is shown; `code` gives them when they are asked for.
function copyable(code) {
  const text = element("pre", { class: "nca-demo-code" }), said = element("output");
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      said.textContent = "copied";
    } catch { // no permission: the reader copies by hand
      getSelection().selectAllChildren(text);
      said.textContent = "selected: copy it";
    }
  });
  const root = element("details", {}, element("summary", {}, "As code"), text, tools(copy, said));
  const update = () => {
    said.textContent = "";
    if (root.open) text.textContent = code();
  };
  root.addEventListener("toggle", update);
  return { root, update };
}

// Call `act(visible)` when the element comes into view or leaves it (also the document), or the tab does.
function watch(root, act) {
  let inView = false;
  const tell = () => act(inView && !document.hidden);
  const observer = new IntersectionObserver((entries) => {
    inView = entries[entries.length - 1].isIntersecting;
    tell();
  });
  observer.observe(root);
  document.addEventListener("visibilitychange", tell);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", tell);
  };
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Put a component into the element that it is given.
function put(el, root) {
  root.prepend(element("style", {}, THEME));
  el.append(root);
}

export { button, calm, copyable, decimals, element, labelled, number, put, range, select, tools, watch };
