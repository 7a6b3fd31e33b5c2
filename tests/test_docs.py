"""README.md and the pages of docs/ are true: code runs, commands parse, links and paths lead somewhere."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import xlstm
from tests.docs import blocks
from xlstm.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md"]
GPU = "# needs a GPU"
COMMANDS = typer.main.get_command(app)


def names(paths):
    return [path.name for path in paths]


def libraries(block):
    """Return the packages that a block imports and that xlstm does not need."""
    found = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found - {"numpy", "xlstm"} - set(sys.stdlib_module_names)


def programs():
    """Return every program: all blocks of a page that need nothing more, and each other block after those before it."""
    found = []
    for page in PAGES:
        plain = []
        for number, block in enumerate(blocks(page), 1):
            needed = sorted(libraries(block))
            if needed or GPU in block:
                which = f"{page.name}-{number}-{'-'.join(needed) or 'gpu'}"
                found.append(pytest.param([*plain, block], needed, GPU in block, id=which))
            else:
                plain.append(block)
        if plain:
            found.append(pytest.param(plain, [], False, id=page.name))
    return found


@pytest.mark.parametrize(("program", "needed", "gpu"), programs())
def test_code_runs(tmp_path, program, needed, gpu):
    """Code runs in one namespace and in a folder of its own."""
    for library in needed:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    if gpu and isinstance(reason := xlstm.available_backends()["cupy"], str):
        pytest.skip(f"cupy: {reason}")
    (tmp_path / "page.py").write_text("\n".join(program), encoding="utf-8")
    usual = {"XLSTM_BACKEND": "numpy", "XLSTM_COMPILE": "0", "KERAS_BACKEND": "torch"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env={**os.environ, **usual, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def calls(text):
    """Return the arguments of each call of `xlstm` in lines of a shell."""
    return [shlex.split(words, comments=True) for words in re.findall(r"(?:^|/)xlstm ([^&\n]+)", text, re.MULTILINE)]


def command_of(words):
    """Return the command that some words call, and the words after its name."""
    command = COMMANDS
    while hasattr(command, "commands"):
        name = words[0] if words and words[0] in command.commands else None
        assert name or hasattr(command, "usual"), f"there is no command {words[:1]}"
        words, command = words[1:] if name else words, command.commands[name] if name else command.usual
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
    assert {word for word in words if word.startswith("-")} <= known
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_parse(page):
    for words in calls("\n".join(blocks(page, "sh"))):
        command, rest = command_of(words)
        command.make_context("xlstm", rest)  # parses and checks the arguments, and runs nothing
    for text in re.findall(r"`(xlstm [a-z][^`]*)`", page.read_text(encoding="utf-8")):
        command_of(shlex.split(text)[1:])


def headings(page):
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PROSE, ids=names(PROSE))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            name, _, heading = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), target
            assert not heading or heading in headings(other), target


@pytest.mark.parametrize("page", PROSE, ids=names(PROSE))
def test_files_modules_and_sessions_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:xlstm|bench|tests|docs)/[\w/-]*\w(?:\.\w+)?/?", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module == "venv" or importlib.util.find_spec(module) is not None, module
    sessions = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for session in re.findall(r"nox -s (\w+)", text):
        assert f"\ndef {session}(session" in sessions, session


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
