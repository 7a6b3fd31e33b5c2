"""Check a built site: `python docs/check_site.py docs/_build/html`, with `2` for two browsers.

Every link within the site leads to a file and an anchor that are there, no page asks another
machine for a script, a style or a picture, and none has an empty navigation, or a page made from a
docstring before or after one that is written by hand. Then a headless Chromium opens pages from the
folder, narrow and wide, light and dark: none scrolls sideways, no text lies over other text, no
entry beside a page is cut off, text stands out from what is behind it, and the search finds the
right place first, with an excerpt. Where there is no Chromium, this says so and the rest is checked.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lxml import html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 180_000  # milliseconds that a page may take, on a machine that has other work
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
# Words of a search, and a page that is to be among the results.
SEARCHES = {"LSTM": "xlstm.LSTM", "gradcheck": "xlstm.gradcheck", "--ranks": "distributed"}
# Words of a search, and the page, or the section, that it is to find first.
LENGTHS = "layers.html#sequences-of-different-lengths"
FIRST = {
    "padding": LENGTHS,
    "mask": LENGTHS,
    "variable length": LENGTHS,
    "xLSTM-7B": "xlstm_7b.html",
    "batch_first": "coming_from/pytorch.html",
    "save": "save_and_load.html",
    "GPU": "gpu.html",
    "embedding": "classify_texts.html",
    "Hessian": "second_derivatives.html",
    "quantile": "forecasts.html#",
    "several GPUs": "distributed.html",  # two words
    "HESSIANS": "second_derivatives.html",  # upper case, more than one
}

# Whether the search has ended; and its results, which have excerpts but where they are names.
FOUND = "document.querySelector('.search-summary, #search-results p')?.innerText.includes('found')"
RESULTS = """entries => entries.map(entry => ({
  place: entry.querySelector("a").href,
  said: entry.matches(".kind-object") || entry.querySelector("p.context")?.innerText.length > 20,
}))"""

# Texts that lie over each other, where `layout` is true, and texts that hardly differ from what is
# behind them. A text that its box cuts off counts as far as it is seen, and boxes that overlap by
# less than 3 pixels only touch.
PROBLEMS = """layout => {
  const seen = [], found = [];
  if (layout && document.documentElement.scrollWidth > innerWidth) {
    found.push(`scrolls sideways: ${document.documentElement.scrollWidth} of ${innerWidth} pixels`);
  }
  const shade = text => {
    const part = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const scale = text.startsWith("color(") ? 1 : 255;
    const linear = v => v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = part.slice(0, 3).map(v => linear(v / scale));
    return {light: 0.2126 * r + 0.7152 * g + 0.0722 * b, solid: part.length < 4 || part[3] > 0.5};
  };
  const kept = new Map();  // the colour behind an element, and the box that its texts are seen in
  const around = element => {
    if (!element) return {light: 1, left: -1e9, top: -1e9, right: 1e9, bottom: 1e9};
    if (!kept.has(element)) {
      const outer = around(element.parentElement), style = getComputedStyle(element);
      const box = {...outer}, own = shade(style.backgroundColor);
      if (own.solid) box.light = own.light;
      if (style.overflow !== "visible" && element !== document.body) {
        const edge = element.getBoundingClientRect();
        [box.left, box.right] = [Math.max(box.left, edge.left), Math.min(box.right, edge.right)];
        [box.top, box.bottom] = [Math.max(box.top, edge.top), Math.min(box.bottom, edge.bottom)];
      }
      kept.set(element, box);
    }
    return kept.get(element);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const own = node.parentElement, text = node.textContent.trim();
    if (!text || !own.checkVisibility({checkVisibilityCSS: true, checkOpacity: true})) continue;
    if (own.closest("svg, math, .sr-only, .visually-hidden, .skip-link, .search-button__kbd-shortcut")) continue;
    const box = around(own), pair = [shade(getComputedStyle(own).color).light, box.light];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 2) found.push(`contrast ${contrast.toFixed(1)}: ${text.slice(0, 40)}`);
    if (!layout) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const line of range.getClientRects()) {
      const [left, right] = [Math.max(line.left, box.left), Math.min(line.right, box.right)];
      const [top, bottom] = [Math.max(line.top, box.top), Math.min(line.bottom, box.bottom)];
      if (right - left > 3 && bottom - top > 3) seen.push({left, top, right, bottom, own, text});
    }
  }
  for (const box of layout ? document.querySelectorAll(".bd-sidebar-primary, .bd-sidebar-secondary") : []) {
    if (box.scrollWidth > box.clientWidth) found.push(`cut off beside the page: ${box.innerText.slice(0, 40)}`);
  }
  seen.sort((a, b) => a.top - b.top);
  seen.forEach((a, k) => {
    for (let j = k + 1; j < seen.length && seen[j].top < a.bottom - 3; j++) {
      const b = seen[j], wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      if (wide > 3 && Math.min(a.bottom, b.bottom) - b.top > 3 && a.own !== b.own) {
        found.push(`overlap: "${a.text.slice(0, 40)}" and "${b.text.slice(0, 40)}"`);
      }
    }
  });
  return found;
}"""


class Page:
    """The anchors of a page, what it links to, and what a browser fetches with it."""

    def __init__(self, path: Path) -> None:
        page = html.parse(path)
        self.anchors: set[str] = {*page.xpath("//@id"), *page.xpath("//@name")}
        self.links: list[str] = page.xpath("//a/@href")
        self.loaded: list[str] = page.xpath("//script/@src | //img/@src | //iframe/@src")
        self.loaded += page.xpath(
            "//link[@rel='stylesheet' or @rel='icon' or @rel='preload']/@href"
        )
        self.beside: list[str] = page.xpath("//a[@class='left-prev' or @class='right-next']/@href")
        self.has_empty = bool(page.xpath("//nav[contains(@class, 'bd-docs-nav') and not(.//a)]"))


def broken(site: Path) -> Iterator[str]:
    """Yield every link within a site that leads nowhere, every file that a page asks another machine
    for, and pages with a navigation that leads nowhere or astray.
    """
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path) for path in paths}
    for path, page in pages.items():
        where = path.relative_to(site)
        yield from (f"{where}: fetches {url}" for url in page.loaded if urlsplit(url).netloc)
        yield from (f"{where}: before or after {url}" for url in page.beside if "xlstm." in url)
        if page.has_empty:
            yield f"{where}: a navigation without a link"
        for url in dict.fromkeys([*page.links, *page.loaded]):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{where}: no file for {url}"
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                yield f"{where}: no anchor for {url}"


def shown(site: Path) -> list[Path]:
    """Return the pages to look at: all that are written by hand, and some of those made from
    docstrings and sources.
    """
    pages = [path for path in sorted(site.rglob("*.html")) if path.parent.name != "_static"]
    folders = {path: path.relative_to(site).parts for path in pages}
    docstrings = [path for path in pages if "generated" in folders[path]]
    sources = [path for path in pages if "source" in folders[path]]
    return (
        [path for path in pages if path not in {*docstrings, *sources}]
        + docstrings[::20]
        + sorted(docstrings, key=lambda path: path.stat().st_size)[-1:]  # which has most names
        + sources[::100]
    )


def looked_at(site: Path, pages: Sequence[Path], browser: Any) -> Iterator[str]:
    """Yield what is wrong with pages as a browser shows them."""
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    for path in pages:
        tab.goto(path.as_uri())
        tab.add_style_tag(content="* { transition: none !important; }")  # colours change at once
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            # colours do not depend on the width
            for scheme in SCHEMES if width == WIDTHS[-1] else SCHEMES[:1]:
                tab.emulate_media(color_scheme=scheme)
                for problem in tab.evaluate(PROBLEMS, scheme == "light"):
                    yield f"{path.relative_to(site)} at {width} pixels, {scheme}: {problem}"


def searched(site: Path, searches: Sequence[str], browser: Any) -> Iterator[str]:
    """Yield what is wrong with results of the search."""
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    for words in searches:
        tab.goto(f"{(site / 'search.html').as_uri()}?q={quote(words)}")
        tab.wait_for_function(FOUND)
        results = tab.eval_on_selector_all("#search-results li", RESULTS)
        places = [one["place"].removeprefix(f"{site.as_uri()}/") for one in results]
        if words in FIRST and not "".join(places[:1]).startswith(FIRST[words]):
            yield f"search for {words}: {FIRST[words]} is not the first of {places[:5]}"
        if words in SEARCHES and not any(SEARCHES[words] in place for place in places):
            yield f"search for {words}: {SEARCHES[words]} is not among {len(places)} results"
        yield from (
            f"search for {words}: {one['place']} has no excerpt"
            for one in results
            if not one["said"]
        )


def looks(site: Path, pages: Sequence[Path], searches: Sequence[str], command: str) -> list[str]:
    """Return what is wrong with pages and with results of searches, in a browser of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to run as root in its sandbox, and all that it opens is the site.
        browser = playwright.chromium.launch(executable_path=command, args=["--no-sandbox"])
        return [*looked_at(site, pages, browser), *searched(site, searches, browser)]


def main() -> None:
    site, browsers = Path(sys.argv[1]).resolve(), int((sys.argv[2:] or "1")[0])
    problems = list(broken(site))
    problems += [
        f"{name} is missing" for name in ("llms.txt", "sitemap.xml") if not (site / name).is_file()
    ]
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        print(
            f"NOT LOOKED AT: there is none of {', '.join(BROWSERS)} here, so no page was opened in"
            " a browser"
        )
    else:
        pages, searches = shown(site), [*FIRST, *SEARCHES]
        parts = [
            (site, pages[k::browsers], searches[k::browsers], command) for k in range(browsers)
        ]
        with Pool(browsers) as pool:
            problems += chain.from_iterable(pool.starmap(looks, parts))
        print(
            f"{len(pages)} pages looked at, {len(WIDTHS)} widths, {' and '.join(SCHEMES)};"
            f" {len(searches)} searches"
        )
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
