// How Sphinx's search (searchtools.js, loaded after this) orders what it found, and what it shows of it. A page counts
// by how often it has the words (search_texts.js), and a chapter, which explains, before the reference, which lists.

// The searched words with their other endings, as one pattern: Sphinx finds those too.
function searched() {
  const query = (new URLSearchParams(location.search).get("q") || "").toLowerCase();
  const words = query.split(/[^\p{L}\p{N}_-]+/u).filter(Boolean);
  const stems = [...words, ...words.map((word) => new Stemmer().stemWord(word))];
  return new RegExp(`((?:${stems.join("|")})[\\p{L}\\p{N}]*)`, "giu");
}
const occurrences = (section) => [...section.slice(1).join(" ").matchAll(searched())].length;

var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score([page, , anchor, description, score]) {
    if (anchor.startsWith("#term-")) return score / 10; // the glossary, found by its index entry
    if (anchor || description) return score;
    const found = (SEARCH_TEXTS[page] || []).reduce((sum, section) => sum + occurrences(section), 0);
    return score + 2 * Math.log2(1 + found) + (/^book\/\d\d_/.test(page) ? 12 : 0);
  },
};

const CONTEXT = 110; // characters before and after the first word

function excerpt(text) {
  const first = Math.max(0, text.search(searched()));
  const start = first > CONTEXT ? text.indexOf(" ", first - CONTEXT) : 0;
  const end = text.length > first + CONTEXT ? text.lastIndexOf(" ", first + CONTEXT) : text.length;
  const made = document.createElement("p");
  made.className = "context";
  made.append(start ? "…" : "");
  for (const [n, part] of text.slice(start, end).split(searched()).entries()) {
    const piece = document.createElement(n % 2 ? "mark" : "span");
    piece.textContent = part;
    made.append(piece);
  }
  made.append(end < text.length ? " …" : "");
  return made;
}

// Below a found page, the section that has the words most often: its title, and the words in their place.
function show(item) {
  const link = item.querySelector("a");
  link.textContent = link.textContent.replace(/> +\((.*)\)$/, "> Exercise: $1");
  const [page, anchor] = link.getAttribute("href").split("#");
  const sections = SEARCH_TEXTS[page.replace(/\.html$/, "")] || [];
  const named = sections.filter(([id]) => id === anchor);
  const candidates = named.length ? named : anchor ? [] : sections;
  const best = candidates.reduce((a, b) => (a && occurrences(a) >= occurrences(b) ? a : b), null);
  if (!best || !occurrences(best)) return;
  if (!anchor && best !== sections[0]) {
    const deeper = document.createElement("a");
    deeper.href = `${page}#${best[0]}`;
    deeper.textContent = best[1];
    item.append(" › ", deeper);
  }
  item.append(excerpt(best[2]));
}

document.addEventListener("DOMContentLoaded", () => {
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) for (const node of addedNodes) if (node.nodeName === "LI") show(node);
  }).observe(document.getElementById("search-results"), { childList: true, subtree: true });
});
