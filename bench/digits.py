"""Accuracy of `SequenceClassifier` with its defaults on handwritten digits, read row by row, with unequal lengths.

python -m bench.digits [--json FILE] [--splits 5]

The 1797 images of 8 by 8 pixels are those of scikit-learn. As sequences of 8 rows, or without up to two rows at the
end, which are drawn for each image, they are split at random; a quarter is held out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from xlstm.cli import info
from xlstm.estimators import SequenceClassifier


def sequences(least: int):
    """Images as sequences of at least so many rows, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    lengths = np.random.default_rng(0).integers(least, 9, len(images))
    return [image[:length] for image, length in zip(images.reshape(-1, 8, 8), lengths, strict=True)], labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--splits", type=int, default=5, help="random splits into training and test")
    options = parser.parse_args()
    for name, least in (("8 rows", 8), ("6 to 8 rows", 6)):
        X, y = sequences(least)
        found, start = [], time.perf_counter()
        for split in range(options.splits):
            order = np.random.default_rng(split).permutation(len(X))
            test, rest = order[: len(X) // 4], order[len(X) // 4 :]
            fitted = SequenceClassifier(backend="numpy").fit([X[k] for k in rest], y[rest])
            found.append(fitted.score([X[k] for k in test], y[test]))
        seconds = (time.perf_counter() - start) / options.splits
        print(f"digits, {name}: accuracy {min(found):.3f} to {max(found):.3f}, median {statistics.median(found):.3f}")
        print(f"  of {options.splits} splits, {seconds:.1f} s each; goal: 0.96 or more")
        if options.json is not None:
            line = {"bench": "digits", "case": name, "accuracy": found, "seconds": seconds, **info.describe()}
            with options.json.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
