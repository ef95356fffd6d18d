// Frames to go through: what a notebook's explorer has computed, or a page holds. For anywidget, and for pages.
//
// A frame is { pictures: [{ label, src }], caption, charts, of } (of: how many frames there will be). Traits of the
// model: label, axis (what the scrubber counts), code, note, choosing (whether a cell can be chosen), frames (of a
// page). In a notebook frames come as messages: begin, frame, all, clear. It says "ready" when it can hear them and
// "cell" when one is chosen.

import { button, calm, copyable, element, labelled, put, range, tools, watch } from "./parts.js";
import { lineChart } from "./chart.js";
import { pictures } from "./pictures.js";

const RATE = 8; // frames a second when played

function render({ model, el }) {
  let frames = [...(model.get("frames") ?? [])], at = 0, begun = false, playing = 0, visible = false;
  const row = pictures({
    onCell: model.get("choosing") ? (picture, y, x) => model.send({ event: "cell", picture, y, x }) : null,
  });
  const charts = element("div", { class: "nca-pictures" }), caption = element("output", { "aria-live": "off" });
  const scrubber = range(0, 0, 0), place = element("output", { "aria-live": "off" });
  scrubber.className = "nca-demo-wide";
  const play = button("Play", () => (playing ? pause() : start()), "go through the frames");
  const scrub = tools(play, labelled(model.get("axis") || "frame", scrubber, "go to any frame"), place);
  const code = copyable(() => model.get("code"));
  const note = element("div", { class: "nca-demo-help" }, model.get("note") ?? "");
  const root = element("div", { class: "nca-demo", role: "group", "aria-label": model.get("label") },
    row.root, charts, element("div", {}, caption), scrub, code.root, note);
  code.root.hidden = !model.get("code");

  function show(index) {
    at = index;
    const frame = frames[at];
    row.root.hidden = !frame;
    scrub.hidden = frames.length < 2;
    if (!frame) {
      charts.replaceChildren();
      caption.textContent = "";
      return;
    }
    row.show(frame.pictures);
    charts.replaceChildren(...frame.charts.map((chart) => lineChart(chart)));
    caption.textContent = frame.caption;
    scrubber.max = frames.length - 1;
    scrubber.value = at;
    scrubber.setAttribute("aria-valuetext", frame.caption);
    place.textContent = `${at + 1} of ${Math.max(frames.length, frame.of)}`;
  }
  function start() {
    if (at === frames.length - 1) show(0);
    playing = setInterval(() => {
      if (!visible) return;
      if (at + 1 < frames.length) show(at + 1);
      if (at + 1 >= frames.length) pause();
    }, 1000 / RATE);
    play.textContent = "Pause";
  }
  function pause() {
    clearInterval(playing);
    playing = 0;
    play.textContent = "Play";
  }
  scrubber.addEventListener("input", () => {
    pause();
    show(Number(scrubber.value));
  });

  // Who watches the newest frame goes on watching it; who went back stays there.
  function hear({ event, frame, frames: all }) {
    if (event === "begin") begun = true;
    else if (event === "clear") {
      frames = [];
      show(0);
    } else if (event === "all") {
      frames = all;
      show(Math.max(0, frames.length - 1));
    } else if (event === "frame") {
      const following = begun || at >= frames.length - 1;
      if (begun) frames = [];
      begun = false;
      frames.push(frame);
      show(following && !playing ? frames.length - 1 : at);
    }
  }
  const codeChanged = () => {
    code.root.hidden = !model.get("code");
    code.update();
  };
  model.on("msg:custom", hear);
  model.on("change:code", codeChanged);
  put(el, root);
  show(Math.max(0, frames.length - 1));
  const unwatch = watch(root, (now) => {
    visible = now;
    if (visible && model.get("frames")?.length > 1 && !calm() && !root.dataset.played) {
      root.dataset.played = "once";
      show(0);
      start();
    }
  });
  model.send?.({ event: "ready" });
  return () => {
    pause();
    unwatch();
    model.off("msg:custom", hear);
    model.off("change:code", codeChanged);
  };
}

export default { render };
