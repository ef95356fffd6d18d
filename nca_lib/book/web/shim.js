
// In a page without a kernel this follows a component in the same script: a stand-in for anywidget's model. A block, so
// that its names are its own.
{
  const mount = document.getElementById("MOUNT");
  const fixed = JSON.parse(document.getElementById("MOUNT-traits").textContent);
  const nothing = () => {};
  const printed = mount.querySelector(".nca-demo-still"); // book.css shows it on paper, and nowhere else
  mount.replaceChildren(...(printed ? [printed] : []));
  if (printed) mount.classList.add("nca-demo-alive");
  const leave = render({
    model: { get: (name) => fixed[name], set: nothing, save_changes: nothing, on: nothing, off: nothing, send: nothing,
      inPage: true },
    el: mount,
  });
  // A page that the browser keeps for a way back wakes up as it was; any other ends here.
  addEventListener("pagehide", (event) => event.persisted || leave());
}
