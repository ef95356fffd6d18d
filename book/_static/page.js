// Paper is white whatever the theme, and a download is for keeping, not for reading as text.
const root = document.documentElement;
let theme = "light";
addEventListener("beforeprint", () => {
  theme = root.dataset.theme;
  root.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  root.dataset.theme = theme;
});

// From disk, browsers open a source instead of saving it; but they run the copy of it that nca_pages.py wrote.
function save(event) {
  const link = event.currentTarget, script = document.createElement("script");
  event.preventDefault();
  script.src = `${link.href}.js`;
  script.onload = () => {
    const address = URL.createObjectURL(new Blob([window.pageSource]));
    const name = decodeURIComponent(link.pathname.split("/").pop());
    Object.assign(document.createElement("a"), { href: address, download: name }).click();
  };
  document.head.append(script);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const link of document.querySelectorAll("a.btn-download-source-button")) {
    link.download = "";
    if (location.protocol === "file:") link.addEventListener("click", save);
  }
});
