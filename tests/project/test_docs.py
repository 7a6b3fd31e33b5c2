"""README.md and the pages of docs/ are true: code runs, commands parse, links and paths lead
somewhere.
"""

import ast
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import typer

import xlstm
from tests.conftest import ROOT
from tests.project.markdown import blocks, cells
from xlstm.arrays.cached import cached_property
from xlstm.cli.app import DEFAULT, app

DOCS = ROOT / "docs"
# Sphinx runs notebooks, and writes pages of its own.
NOT_HERE = ("_build", "generated")
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if not {*NOT_HERE} & {*p.parts}),
]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md"]
DEVICE = DOCS / "on-a-device.md"
REFERENCE = [page for page in PAGES if page.parent.name == "reference" and blocks(page, "pycon")]
GPU = "# needs a GPU"
COMMANDS = typer.main.get_command(app)


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def libraries(block):
    """Return the packages that a block imports and that xlstm does not need."""
    found = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found - {"numpy", "xlstm"} - set(sys.stdlib_module_names)


PLAIN = ((), False)


def programs():
    """Return the programs of all pages, by page: blocks that need nothing more, and with them those
    that need the same.

    Programs that need the same packages go together, as to import these takes longer than to run
    them.
    """
    found = {}
    for page in PAGES:
        every = blocks(page)
        kinds = [(tuple(sorted(libraries(block))), GPU in block) for block in every]
        for kind in sorted(set(kinds)):
            end = len(kinds) - kinds[::-1].index(kind)  # after the last one of this kind
            program = [
                block
                for block, other in zip(every[:end], kinds, strict=False)
                if other in (PLAIN, kind)
            ]
            name = str(page.relative_to(ROOT))
            found.setdefault((name if kind == PLAIN else "", *kind), {})[name] = "\n".join(program)
    for (page, needed, gpu), pages in found.items():
        yield pytest.param(
            pages, needed, gpu, id="-".join([*[page] * bool(page), *needed, *["gpu"] * gpu])
        )


# Each page in a namespace and a folder of its own.
ALL_PAGES = """
import os, runpy, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path("page.py")
"""


@pytest.mark.parametrize(("pages", "needed", "gpu"), list(programs()))
def test_code_runs(tmp_path, pages, needed, gpu):
    for library in needed:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    if gpu and isinstance(reason := xlstm.available_backends()["cupy"], str):
        pytest.skip(f"cupy: {reason}")
    folders = [tmp_path / name for name in pages]
    for folder, program in zip(folders, pages.values(), strict=True):
        folder.mkdir(parents=True)
        (folder / "page.py").write_text(program, encoding="utf-8")
    result = run(tmp_path, "-c", ALL_PAGES, *folders)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("chapter", ["cell", "gradients", "text"])
def test_chapters_read_their_data_in_any_folder(tmp_path, chapter):
    """Up to the cell that does: the site runs all."""
    program = cells(DOCS / "learn" / f"{chapter}.md")
    end = next(k for k, cell in enumerate(program) if "files(" in cell)
    lines = "\n".join(cell for cell in program[: end + 1] if "matplotlib" not in cell)
    (tmp_path / "chapter.py").write_text(lines, encoding="utf-8")
    result = run(tmp_path, "chapter.py")
    assert result.returncode == 0, result.stderr


def run(folder, *command):
    """Run Python in a folder with the package alone, as where it is installed, and not with its
    checkout.
    """
    usual = {"XLSTM_BACKEND": "numpy", "XLSTM_COMPILE": "0", "KERAS_BACKEND": "torch"}
    installed = folder / "site-packages"
    installed.mkdir()
    (installed / "xlstm").symlink_to(ROOT / "xlstm")
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **usual, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


ARDUINO = """
#include <stdint.h>
struct Port {
    void begin(long);
    void println(const char *);
};
extern Port Serial;
uint32_t micros();
"""
COMPILERS = {
    "g++": [],
    "arm-none-eabi-g++": ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"],
    "avr-g++": ["-mmcu=atmega2560"],
}


def test_programs_for_a_device_compile_and_are_what_is_written(tmp_path):
    page = re.sub(r"epochs=\d+", "epochs=1", "\n".join(blocks(DEVICE)))
    (tmp_path / "page.py").write_text(page, encoding="utf-8")
    result = run(tmp_path, "page.py")
    assert result.returncode == 0, result.stderr
    written = [(tmp_path / f"gesture.{kind}").read_text().splitlines() for kind in "hc"]
    for text, block in zip(written, blocks(DEVICE, "c"), strict=True):
        assert not set(block.splitlines()) - set(text)
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    sketches = []
    for k, sketch in enumerate(blocks(DEVICE, "cpp")):
        sketches.append(f"sketch_{k}.cpp")
        (tmp_path / sketches[-1]).write_text(sketch)
    compilers = [name for name in COMPILERS if shutil.which(name)]
    if not compilers:
        pytest.skip("there is no compiler")
    for name in compilers:
        strict = ["-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-I."]
        command = [name, *COMPILERS[name], *strict, "-c", *sketches, "-x", "c++", "gesture.c"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", REFERENCE, ids=names(REFERENCE))
def test_examples_of_the_reference_run(tmp_path, page):
    """They print what the page says, each by itself: pages of single names repeat them one by
    one.
    """
    pytest.importorskip(
        "pandas" if page.stem == "data" else "matplotlib" if page.stem == "plots" else "numpy"
    )
    examples = [f"{k}.txt" for k, _ in enumerate(blocks(page, "pycon"))]
    for name, text in zip(examples, blocks(page, "pycon"), strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    result = run(tmp_path, "-W", "error", "-m", "doctest", "-o", "NORMALIZE_WHITESPACE", *examples)
    assert result.returncode == 0, result.stdout + result.stderr


MODULES = [
    name for name in xlstm.__all__ if inspect.ismodule(getattr(xlstm, name)) and name != "interop"
]
MODULES += [f"interop.{name}" for name in xlstm.interop.__all__] + [
    "models.tirex",
    "testing",
    "engines.engine",
]


def public():
    """Return the public names of all public modules but modules, and what they name."""
    modules = {
        "xlstm": xlstm,
        **{f"xlstm.{name}": importlib.import_module(f"xlstm.{name}") for name in MODULES},
    }
    found = {
        f"{where}.{name}": getattr(module, name)
        for where, module in modules.items()
        for name in module.__all__
    }
    return {
        name: value
        for name, value in found.items()
        if not inspect.ismodule(value) and not name.endswith("__")
    }


def test_every_public_name_is_in_the_reference_with_an_example():
    """By one of its names, with a docstring, and with an example in it or on its page."""
    listed = {}
    missing = []
    lacking = []
    for page in (DOCS / "reference").glob("*.md"):
        for name in re.findall(
            r"^   (xlstm[\w.]*)$", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            listed[name] = page
    names = public()
    for name, value in names.items():
        page = next(
            (listed[other] for other in names if names[other] is value and other in listed), None
        )
        if page is None:
            missing.append(name)
        elif ">>>" not in (inspect.getdoc(value) or ""):
            examples = "\n".join(blocks(page, "pycon") + blocks(page))
            lacking += [] if re.search(rf"\b{name.rpartition('.')[2]}\b", examples) else [name]
    assert not missing
    assert not lacking
    assert not sorted(listed.keys() - names.keys())
    described = {
        name: value
        for name, value in names.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert not [name for name, value in described.items() if not inspect.getdoc(value)]
    assert not [name for name in xlstm.__all__ if not getattr(xlstm, name).__doc__]


# what has a docstring of its own
DOCUMENTED = (types.FunctionType, classmethod, staticmethod, property, cached_property)


def attributes(kind):
    """Return the names of the public attributes of a class, without those of Python's own
    classes.
    """
    ours = [base for base in kind.__mro__ if base.__module__.startswith("xlstm.")]
    found = {
        name for base in ours for name in (*vars(base), *vars(base).get("__annotations__", {}))
    }
    return ours, sorted(name for name in found if not name.startswith("_"))


@pytest.mark.parametrize(
    "name", [name for name, value in public().items() if inspect.isclass(value)]
)
def test_every_public_attribute_is_documented(name):
    """In its own docstring, in a section of the class, or in a comment `#:`; a subclass inherits
    that.
    """
    bases, found = attributes(public()[name])
    said = "\n".join(inspect.getsource(base) for base in bases).replace("\\\n", "")
    for attribute in found:
        members = [vars(base)[attribute] for base in bases if attribute in vars(base)]
        own = any(isinstance(member, DOCUMENTED) and member.__doc__ for member in members)
        section = re.search(rf"^    (\w+, )*{attribute}(, \w+)*( :.*)?$", said, re.MULTILINE)
        comment = re.search(rf"#:.*\n +{attribute}\b|\b{attribute}\b.*#:", said)
        assert own or section or comment, attribute


def calls(text):
    """Return the arguments of each call of `xlstm` in lines of a shell."""
    return [
        shlex.split(words, comments=True)
        for words in re.findall(r"(?:^|/)xlstm ([^&\n]+)", text, re.MULTILINE)
    ]


def command_of(words):
    """Return the command that some words call, and the words after its name."""
    command = COMMANDS
    while hasattr(command, "commands"):
        name = words[0] if words and words[0] in command.commands else None
        assert name or DEFAULT in command.commands, f"there is no command {words[:1]}"
        words = words[1:] if name else words
        command = command.commands[name or DEFAULT]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {
        "-h",
        "--help",
    }
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
    """Pages that are made when the site is built are looked for there, by docs/check_site.py."""
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target and "generated/" not in target:
            name, _, heading = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), target
            assert not heading or heading in headings(other), target


@pytest.mark.parametrize("page", PROSE, ids=names(PROSE))
def test_files_modules_and_sessions_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", text, re.MULTILINE), "a conflict of a merge"
    for path in re.findall(r"\b(?:xlstm|bench|tests|docs)/[\w/-]*\w(?:\.\w+)?/?", text):
        assert path.startswith("docs/_build") or (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module == "venv" or importlib.util.find_spec(module) is not None, module
    sessions = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for session in re.findall(r"nox -s (\w+)", text):
        assert f"\ndef {session}(session" in sessions, session
