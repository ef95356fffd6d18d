// The deep-zoom page: OpenSeadragon over the tiles that make_slide.py wrote. `slide` is what it says about them.
{
  const { width, height, tile, levels, command } = window.slide, root = document.currentScript.parentElement;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const make = (tag, attributes, text = "") => Object.assign(document.createElement(tag), { ...attributes, textContent: text });

  const stage = make("div", { className: "slide-stage" });
  const tools = make("div", { className: "slide-tools" }), status = make("output", {});
  root.classList.add("slide-alive"); // the still picture is for paper now
  root.prepend(stage, tools);
  const viewer = new OpenSeadragon({
    element: stage,
    drawer: "canvas", // from disk, WebGL may not read pictures
    tileSources: {
      width, height, tileSize: tile, tileOverlap: 0, minLevel: 0, maxLevel: levels - 1,
      getTileUrl: (level, x, y) => `../_static/slide/${level}/${x}_${y}.jpg`,
    },
    showNavigationControl: false, showNavigator: true, navigatorPosition: "BOTTOM_RIGHT", navigatorAutoFade: false,
    visibilityRatio: 1, maxZoomPixelRatio: 6, animationTime: calm ? 0 : 0.8,
    cooperativeGestures: true, // one finger, and the wheel without Ctrl, scroll the page
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  const button = (text, title, act) => {
    const made = make("button", { type: "button", title }, text);
    made.addEventListener("click", act);
    return made;
  };
  const zoom = (factor) => {
    viewer.viewport.zoomBy(factor);
    viewer.viewport.applyConstraints();
  };
  tools.append(
    button("Closer", "or the + key", () => zoom(2)), button("Further", "or the - key", () => zoom(0.5)),
    button("Whole", "or the 0 key", () => viewer.viewport.goHome()),
    button("Pixel for pixel", "one pixel of the picture on one of the screen", () =>
      viewer.viewport.zoomTo(viewer.viewport.imageToViewportZoom(1 / devicePixelRatio))),
    status,
  );
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", "The slide: arrow keys move, plus and minus zoom, 0 shows all of it");
  // OpenSeadragon asks where a key lies, not what is written on it; and its R and F turn and mirror.
  viewer.addHandler("canvas-key", (event) => {
    const { key } = event.originalEvent, factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 }[key];
    event.preventDefaultAction = Boolean(factor) || "rRfF".includes(key);
    if (factor) zoom(factor);
  });

  const words = () => {
    const { viewport } = viewer, middle = viewport.viewportToImageCoordinates(viewport.getCenter());
    const scale = viewport.viewportToImageZoom(viewport.getZoom(true)) * devicePixelRatio;
    const place = `row ${Math.round(middle.y)}, column ${Math.round(middle.x)}`;
    status.textContent = `${width} × ${height} pixels, here ${place}, at ${scale < 0.1 ? scale.toFixed(2) : scale.toFixed(1)} times their size`;
  };
  for (const event of ["open", "update-viewport"]) viewer.addHandler(event, words);
  root.append(make("pre", {}, command));
}
