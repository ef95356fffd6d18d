// Charts as SVG in the colours of the page.

const COLOURS = ["#4a80b8", "#c9622a", "#4f963e", "#a06bb8", "#808080"], SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 12, top: 24, bottom: 34 };

function drawn(tag, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

const short = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e9 || size < 1e-3) return value.toExponential(0).replace("e+", "e");
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  return size >= 1e4 ? `${Number((value / 1e3).toPrecision(3))}k` : `${Number(value.toPrecision(3))}`;
};

// A way from numbers to places: { at, ticks }. Logarithmic where asked for.
function scale([low, high], from, to, logarithmic) {
  const bend = logarithmic ? Math.log10 : (v) => v;
  if (low === high) [low, high] = logarithmic ? [low / 2, high * 2] : [low - 1, high + 1];
  const [a, b] = [bend(low), bend(high)], at = (value) => from + ((bend(value) - a) / (b - a)) * (to - from);
  if (logarithmic && b - a >= 2) {
    const decades = Array.from({ length: Math.floor(b) - Math.ceil(a) + 1 }, (_, i) => 10 ** (Math.ceil(a) + i));
    const every = Math.ceil(decades.length / 5);
    return { at, ticks: decades.filter((_, i) => i % every === 0) };
  }
  if (logarithmic) {
    const round = [];
    for (let e = Math.floor(a); e <= b; e++) for (const m of [1, 2, 5]) round.push(Number(`${m}e${e}`));
    const within = round.filter((v) => v >= low && v <= high);
    return { at, ticks: within.length > 1 ? within : [low, high] };
  }
  const most = (high - low) / 3, power = 10 ** Math.floor(Math.log10(most));
  const step = power * [5, 2, 1].find((m) => m * power <= most);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return { at, ticks: Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12))) };
}

function frame({ x, y, width, height, words }) {
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": words,
    style: "max-width: 100%; height: auto; font-size: 11px; fill: currentColor" });
  const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
  for (const tick of x.ticks) {
    svg.append(drawn("line", { x1: x.at(tick), x2: x.at(tick), y1: MARGIN.top, y2: bottom, stroke: "currentColor",
      "stroke-opacity": 0.15 }));
    svg.append(drawn("text", { x: x.at(tick), y: bottom + 14, "text-anchor": "middle" }, short(tick)));
  }
  for (const tick of y.ticks) {
    svg.append(drawn("line", { x1: MARGIN.left, x2: right, y1: y.at(tick), y2: y.at(tick), stroke: "currentColor",
      "stroke-opacity": 0.15 }));
    svg.append(drawn("text", { x: MARGIN.left - 5, y: y.at(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  return svg;
}

const finite = (values, logarithmic) => values.filter((v) => Number.isFinite(v) && (!logarithmic || v > 0));
const limits = (values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];

// Lines over x. `chart` is { series: { name: [y, ...] }, x: [x, ...], mark: index or null, label, logarithmic, range }.
function lineChart(chart, width = 360, height = 190) {
  const { series, label, mark = null, logarithmic = false } = chart, all = finite(Object.values(series).flat(), logarithmic);
  const x = scale(limits(chart.x), MARGIN.left, width - MARGIN.right, false);
  const y = scale(chart.range ?? limits(all), height - MARGIN.bottom, MARGIN.top, logarithmic);
  const svg = frame({ x, y, width, height, words: `${Object.keys(series).join(", ")} over ${label}` });
  if (mark !== null) {
    svg.append(drawn("line", { x1: x.at(chart.x[mark]), x2: x.at(chart.x[mark]), y1: MARGIN.top,
      y2: height - MARGIN.bottom, stroke: "currentColor", "stroke-dasharray": "4 3", "stroke-opacity": 0.7 }));
  }
  Object.entries(series).forEach(([name, values], i) => {
    const colour = COLOURS[i % COLOURS.length];
    const points = values.map((v, j) => [v, j]).filter(([v]) => finite([v], logarithmic).length)
      .map(([v, j]) => `${x.at(chart.x[j]).toFixed(1)},${y.at(v).toFixed(1)}`);
    svg.append(drawn("polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": 2 }));
    if (mark !== null && finite([values[mark]], logarithmic).length) {
      svg.append(drawn("circle", { cx: x.at(chart.x[mark]), cy: y.at(values[mark]), r: 4.5, fill: colour }));
    }
    const place = MARGIN.left + (i * (width - MARGIN.left)) / Math.max(2, Object.keys(series).length);
    svg.append(drawn("line", { x1: place, x2: place + 14, y1: 10, y2: 10, stroke: colour, "stroke-width": 3 }));
    svg.append(drawn("text", { x: place + 18, y: 14 }, name));
  });
  svg.append(drawn("text", { x: (width + MARGIN.left) / 2, y: height - 4, "text-anchor": "middle" }, label));
  return svg;
}

// Points with names. `points` are { x, y, name, group, error } (a bar of one error up and down); `floor` (a y or null)
// is a dashed line. `joined`: a line from point to point of each group.
function scatterChart({ points, floor = null, xLabel, yLabel, logX, logY, joined = false }, width = 660, height = 420) {
  const x = scale(padded(points.map((p) => p.x), logX), MARGIN.left, width - MARGIN.right, logX);
  const heights = [...points.flatMap((p) => [p.y - p.error, p.y + p.error]), ...(floor === null ? [] : [floor])];
  const y = scale(padded(heights, logY), height - MARGIN.bottom, MARGIN.top, logY);
  const svg = frame({ x, y, width, height, words: `${yLabel} over ${xLabel}` });
  const groups = [...new Set(points.map((p) => p.group))], taken = [];
  if (floor !== null) {
    svg.append(drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(floor), y2: y.at(floor),
      stroke: "currentColor", "stroke-dasharray": "5 4" }));
    svg.append(drawn("text", { x: width - MARGIN.right, y: y.at(floor) - 5, "text-anchor": "end" }, "real images"));
  }
  const colourOf = (group) => COLOURS[groups.indexOf(group) % COLOURS.length];
  for (const group of joined ? groups : []) {
    const way = points.filter((p) => p.group === group).sort((a, b) => a.x - b.x);
    svg.append(drawn("polyline", { points: way.map((p) => `${x.at(p.x).toFixed(1)},${y.at(p.y).toFixed(1)}`).join(" "),
      fill: "none", stroke: colourOf(group), "stroke-width": 1.5 }));
  }
  for (const point of points) {
    const [cx, cy] = [x.at(point.x), y.at(point.y)], colour = colourOf(point.group);
    if (point.error) {
      svg.append(drawn("line", { x1: cx, x2: cx, y1: y.at(point.y - point.error), y2: y.at(point.y + point.error),
        stroke: colour, "stroke-width": 1.5 }));
    }
    const dot = drawn("circle", { cx, cy, r: 5, fill: colour });
    dot.append(drawn("title", {}, `${point.name}: ${short(point.x)}, ${short(point.y)}`));
    svg.append(dot);
    taken.push([cx - 6, cy - 6, cx + 6, cy + 6]);
  }
  for (const point of points) name(svg, point, x.at(point.x), y.at(point.y), taken, width, height);
  const across = Math.max(1, Math.floor((width - MARGIN.left) / 130)), two = groups.length > across; // two rows fit above
  groups.forEach((group, i) => {
    const left = MARGIN.left + 8 + (i % across) * 130, middle = two ? 5 + 12 * Math.floor(i / across) : 10;
    svg.append(drawn("circle", { cx: left, cy: middle, r: 5, fill: COLOURS[i % COLOURS.length] }));
    svg.append(drawn("text", { x: left + 10, y: middle + 4 }, group));
  });
  svg.append(drawn("text", { x: (width + MARGIN.left) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
  return svg;
}

function padded(values, logarithmic) {
  const [low, high] = limits(finite(values, logarithmic)), by = 0.06;
  if (logarithmic) return [low * (low / high) ** by / 1.05, high * (high / low) ** by * 1.05];
  return [low - by * (high - low || 1), high + by * (high - low || 1)];
}

// A point's name where no other name is: the first free of some places around it, none if all are taken.
function name(svg, point, cx, cy, taken, width, height) {
  const wide = 6 * point.name.length, places = [];
  for (const dy of [4, -9, 17, -22, 30]) places.push([cx + 9, cy + dy], [cx - 9 - wide, cy + dy], [cx - wide / 2, cy + dy * 1.4]);
  for (const [left, base] of places) {
    const box = [left, base - 10, left + wide, base + 3];
    if (box[0] < MARGIN.left || box[2] > width || box[1] < MARGIN.top - 8 || box[3] > height - MARGIN.bottom) continue;
    if (taken.some((t) => t[0] < box[2] && box[0] < t[2] && t[1] < box[3] && box[1] < t[3])) continue;
    taken.push(box);
    svg.append(drawn("text", { x: left, y: base }, point.name));
    return;
  }
}

export { lineChart, scatterChart };
