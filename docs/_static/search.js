// Excerpts and order of the search, on top of Sphinx's searchtools.js.

// Sphinx fetches each page that it found to cut an excerpt out of it. A browser refuses that in a folder, so texts of all
// sections come with search_texts.js, and what is fetched is the name of the page.
const root = document.documentElement.dataset.content_root;
window.fetch = async url => ({text: () => url.slice(root.length)});
Search.htmlToText = (page, anchor) => Search.texts[page][anchor] || Object.values(Search.texts[page]).join(" ");

// An excerpt begins at the last of the words that is there; where none is, at the beginning.
const summary = Search.makeSearchSummary;
Search.makeSearchSummary = (page, words, anchor) => summary(page, ["", ...words], anchor);

// Pages about the work on the project come last, and of others that are equal those made from docstrings.
Scorer.score = ([page, , , , score]) =>
  page.startsWith("project/") ? score - 1000 : page.includes("/generated/") ? score - 0.5 : score;
