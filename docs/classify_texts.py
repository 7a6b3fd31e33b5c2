"""Measure networks beside bags of words, for the table of classify_texts.md.

python docs/classify_texts.py [SEEDS]

The program runs the blocks of the page. Then it compares both methods on held-out lines of Hamlet
and on held-out sentences of documentation. A seed draws the held-out texts and the initial weights
of the network.
"""

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HELD_OUT = 0.25


def defined_on_the_page():
    """Return the names that the page defines."""
    text = (HERE / "classify_texts.md").read_text(encoding="utf-8")
    names = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)), names)
    return names


def parts(values, is_held_out):
    """Return the values to fit, and the held-out values."""
    return [[v for v, out in zip(values, is_held_out, strict=True) if out == k] for k in (0, 1)]


def swapped(corpus, rng):
    """Return texts, and swap two neighbouring words in every second of them."""
    pairs = []
    for k, (text, _) in enumerate(corpus):
        words = text.split()
        at = rng.integers(len(words) - 2)
        if k % 2:
            words[at : at + 2] = words[at + 1], words[at]
        pairs.append((" ".join(words), "swapped" if k % 2 else "as written"))
    return pairs


def compared(page, seed):
    """Yield each task, its numbers of texts, the share of the most frequent label, and both scores."""
    rng = np.random.default_rng(seed)
    rows = page["speeches"]()
    count = Counter(speaker for _, speaker, _ in rows)
    rows = [row for row in rows if count[row[1]] > 30]
    out = rng.random(1 + max(number for *_, number in rows)) < HELD_OUT  # whole speeches
    corpus = [
        (text, name) for name, files in page["FILES"].items() for text in page["sentences"](files)
    ]
    tasks = {
        "speaker": ([row[:2] for row in rows], [out[number] for *_, number in rows]),
        "package": (corpus, rng.random(len(corpus)) < HELD_OUT),
    }
    tasks["swapped"] = swapped(corpus, rng), tasks["package"][1]
    for task, (pairs, is_held_out) in tasks.items():
        X, X_test = parts([x for x, _ in pairs], is_held_out)
        y, y_test = parts([label for _, label in pairs], is_held_out)
        scores = page["accuracies"](X, y, X_test, y_test, seed=seed)
        most = Counter(y).most_common(1)[0][0]
        yield task, len(X), len(X_test), [np.mean([label == most for label in y_test]), *scores]
    X, X_test = parts([text for text, _ in corpus], tasks["package"][1])
    tagged = page["tags"](X), page["tags"](X_test)
    scores = page["scores_of_tags"](*tagged[0], *tagged[1], seed=seed)
    yield "marks, F1", len(X), len(X_test), [0.0, *scores]


def main():
    warnings.simplefilter("ignore")  # warnings of new words
    page = defined_on_the_page()
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for task, fitted, held_out, scores in compared(page, seed):
            shown = " ".join(f"{score:.3f}" for score in scores)
            sys.stdout.write(f"seed {seed}, {task}: {fitted} and {held_out} texts: {shown}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
