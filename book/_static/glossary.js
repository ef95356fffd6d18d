// Definitions of linked terms: shown by the style sheet when the link is hovered or has the keyboard's focus.
document.addEventListener("DOMContentLoaded", () => {
  for (const term of document.querySelectorAll("a.reference:has(> .std-term)[title]")) {
    term.dataset.definition = term.title;
    term.setAttribute("aria-description", term.title);
    term.removeAttribute("title");
  }
});
