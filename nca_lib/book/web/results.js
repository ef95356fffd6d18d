// Any measured quantity of some rows against any other, one kind of row at a time. For anywidget, and for pages.
//
// Traits of the model: rows ([{ name, group, data, numbers, floor, errors }]), better (quantity to "lower" or "higher"),
// words (quantity to how a reader calls it), costs (quantities on a logarithmic scale), kind (what `data` is), joined
// (whether the points of a group are), note (at the caption's end), label.

import { element, labelled, put, select, tools } from "./parts.js";
import { scatterChart } from "./chart.js";

function render({ model, el }) {
  const [rows, better, words, costs, kind] = ["rows", "better", "words", "costs", "kind"].map((name) => model.get(name));
  const kinds = [...new Set(rows.map((row) => row.data))];
  const data = select(kinds), x = element("select"), y = element("select");
  const chart = element("div"), caption = element("output", { "aria-live": "polite" });
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") },
    tools(labelled(kind, data), labelled("across", x, "the horizontal axis"), labelled("up", y, "the vertical axis")),
    chart, element("div", {}, caption));

  // Only what the chosen rows hold, so that every choice shows points.
  function offer(control, names, preferred) {
    const before = control.value, found = Object.keys(words).filter((name) => names.has(name));
    control.replaceChildren(...found.map((name) => element("option", { value: name }, words[name])));
    control.value = [before, preferred].find((name) => names.has(name)) ?? found[0];
  }
  const held = (chosen) => new Set(chosen.flatMap((row) => Object.keys(row.numbers)));
  function update() {
    const there = rows.filter((row) => row.data === data.value);
    offer(x, held(there), costs[0]);
    const shared = there.filter((row) => x.value in row.numbers), quality = held(shared);
    offer(y, quality, Object.keys(words).find((name) => quality.has(name) && !costs.includes(name)));
    show(shared.filter((row) => y.value in row.numbers));
  }
  function show(chosen) {
    const of = (control) => chosen.map((row) => row.numbers[control.value]);
    const wide = (control) => {
      const values = of(control), [low, high] = [Math.min(...values), Math.max(...values)];
      return low > 0 && (costs.includes(control.value) || high > 20 * low);
    };
    const floors = chosen.map((row) => row.floor[y.value]).filter(Number.isFinite), way = better[y.value];
    chart.replaceChildren(scatterChart({
      points: chosen.map(({ numbers, errors, name, group }) => ({ x: numbers[x.value], y: numbers[y.value], name, group,
        error: errors?.[y.value] ?? 0 })),
      floor: floors.length ? floors[0] : null, xLabel: words[x.value], yLabel: words[y.value], logX: wide(x), logY: wide(y),
      joined: model.get("joined"),
    }, Math.min(660, root.clientWidth || 660))); // a narrow screen gets a narrow chart, not small letters
    caption.textContent = `${chosen.length} ${model.get("joined") ? "points" : "models"}. Up: ${words[y.value]}${way ? `; ${way} is better` : ""}.` +
      (floors.length ? " The dashed line is what real images score against real images." : "") + (model.get("note") ?? "");
  }
  for (const control of [data, x, y]) control.addEventListener("change", update);
  put(el, root);
  update();
  return () => {};
}

export default { render };
