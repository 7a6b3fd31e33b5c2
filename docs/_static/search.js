// Excerpts, titles and order of what the search finds, on top of Sphinx's searchtools.js.

// Sphinx fetches each page that it found and cuts an excerpt out of it. A browser refuses that in a folder, so
// search_texts.js has the heading and the text of every section, and to fetch a page gives its name.
const root = document.documentElement.dataset.content_root;
const below = text => text?.replace(/.*\n/, "");  // the heading, which is in the title
window.fetch = async url => ({text: () => url.slice(root.length)});
Search.htmlToText = (page, anchor) =>
  below(Search.texts[page][anchor]) || below(Object.values(Search.texts[page]).join("\n"));

// An excerpt begins at the last of the words that is in the text, or at its first letter.
const summary = Search.makeSearchSummary;
Search.makeSearchSummary = (page, words, anchor) => summary(page, ["", ...words], anchor);

Scorer.score = result => {
  const [page, title, anchor, , score, , kind] = result;
  const heading = Search.texts[`${page}.html`][anchor]?.split("\n")[0];
  if (kind === "index" && heading) result[1] = `${title} > ${heading}`;  // as Sphinx shows a section
  if (page.startsWith("project/")) return score - 1000;  // the work on the project comes last
  if (kind === "index" && score < 70) return score / 10;  // a part of what search.toml has
  return page.includes("/generated/") ? score - 0.5 : score;  // guides before docstrings
};
