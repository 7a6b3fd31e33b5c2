"""The library stays small: lines of code by package, numbers of files, and file names that occur once.

A line of Python counts if it has a token that is neither a comment nor a part of a docstring, one of CUDA or C++ if it
is neither blank nor a comment. A package that needs more takes it from another.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "": 570,
    "arrays": 2_750,
    "cells": 1_080,
    "cli": 1_890,
    "data": 2_130,
    "engines": 4_150,
    "estimators": 2_470,
    "interop": 2_730,
    "layers": 2_230,
    "models": 1_850,
    "plots": 570,
    "recurrence": 220,
    "tracing": 330,
    "training": 2_240,
}
CUDA = 1_390
TESTS = 21_770
FILES = 220
SAME_NAMES = 10
LAYOUT = {
    *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER, tokenize.COMMENT),
}


def lines_of_python(text):
    code, docstrings = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def lines_of_cuda(text):
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in text.splitlines())


def sources(folder, *endings):
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in endings]


def lines(paths):
    return sum((lines_of_python if path.suffix == ".py" else lines_of_cuda)(path.read_text("utf-8")) for path in paths)


@pytest.mark.parametrize("package", PACKAGES)
def test_lines_of_a_package(package):
    paths = sources(f"xlstm/{package}", ".py") if package else sorted((ROOT / "xlstm").glob("*.py"))
    assert lines(paths) <= PACKAGES[package]


def test_every_package_has_a_budget():
    assert set(PACKAGES) - {""} == {path.parent.name for path in (ROOT / "xlstm").glob("*/__init__.py")}


def test_lines_of_kernels_and_of_tests():
    assert lines(sources("xlstm", ".cu", ".cuh", ".hpp")) <= CUDA
    assert lines(sources("tests", ".py", ".cpp", ".hpp")) <= TESTS


def test_files_and_their_names():
    paths = sources("xlstm", ".py", ".cu", ".cuh", ".hpp")
    assert len(paths) <= FILES
    names = Counter(path.name for path in paths if path.name != "__init__.py")
    assert sum(count > 1 for count in names.values()) <= SAME_NAMES, [name for name in names if names[name] > 1]
