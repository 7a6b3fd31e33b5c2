"""The text of a C program and its header, from functions whose results are given as arrays."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.namespace import leaves
from xlstm.interop.c import arrays
from xlstm.interop.c.arrays import Array, Node, Weight
from xlstm.interop.c.kernels import Store, plan
from xlstm.interop.c.memory import KEYWORDS, Layout, Memory, unique
from xlstm.interop.c.tables import literal, tables
from xlstm.interop.c.writer import Lines, Writer, around, indented
from xlstm.layers.sequence import Leaf, State

# functions of math.h by operations; without math.h, functions.c has functions of the same names
LIBM = {"abs": "fabsf"} | {name: f"{name}f" for name in ("exp", "expm1", "log", "log1p", "sqrt")}
# tanhf of glibc takes twice as long
OURS = {"maximum": "max", "minimum": "min", "tanh": "tanh"}
MEANINGS = {
    "INPUTS": "numbers of x",
    "OUTPUTS": "numbers of y",
    "SYMBOLS": "numbers from 0 that x may be",
    "STEPS": "most steps of a sequence",
    "WEIGHT_BYTES": "of constants",
    "STATE_BYTES": "of the struct below",
    "STACK_BYTES": "of local arrays; registers and calls come on top",
}
# functions of y that users call, by name
CHOICES = {
    "largest": """
/* Return the number of the largest output. */
int32_t {name}_largest(const float *y);
""",
    "sample": """
/* Draw a symbol from softmax(y / temperature), or take the largest where the temperature is 0.
   *random is the state of the random numbers, and any number at first. */
int32_t {name}_sample(const float *y, float temperature, uint32_t *random);
""",
}


@dataclass(frozen=True)
class CProgram:
    """A model as C, with its demands on memory and time.

    Attributes
    ----------
    source, header : str
        The text of the .c file and of its header.
    weight_bytes : int
        Bytes of constants, which may stay in flash memory.
    state_bytes : int
        Bytes of the struct that holds the state.
    stack_bytes : int
        Bytes of the local arrays of a step; a compiler may let some of them share memory.
    operations : int
        Number of additions, multiplications, functions and comparisons in a step.
    weight_error : float
        Relative rounding error of the matrices: the root mean square of the changes, divided by the
        root mean square of the numbers; 0 with float32.
    """

    source: str
    header: str
    weight_bytes: int
    state_bytes: int
    stack_bytes: int
    operations: int
    weight_error: float


class Function(NamedTuple):
    """A C function of x and the state, which sets y and the state."""

    name: str
    kind: str  # type of x, "float" or "int32_t"
    stores: list[Store]


class Facts(NamedTuple):
    """The contents of a program besides its functions.

    Attributes
    ----------
    about : str
        The comment at the top of both files.
    header : str
        The name of the header file.
    sizes : dict of str to int
        The macros of the header.
    texts : dict of str to list of str
        Arrays of texts by name, such as labels.
    main : str
        The declaration of the function that users call, and a comment.
    choices : list of str
        The functions of `CHOICES` that the program has.
    run : list of str
        The definition of `main` if it runs a whole sequence; otherwise the only function is `main`.
    """

    about: str
    header: str
    sizes: dict[str, int]
    texts: dict[str, list[str]]
    main: str
    choices: list[str]
    run: Lines


HEADER = """\
/* {about} */

#ifndef {capital}_H
#define {capital}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{sizes}

/* The memory of one sequence; its members are for the functions below alone. */
typedef struct {{
{members}
}} {name}_state;

{texts}/* Prepare for the first step of a sequence. */
void {name}_init({name}_state *state);

{main}
{choices}
#ifdef __cplusplus
}}
#endif

#endif
"""


@dataclass
class Program:
    """A C program under construction.

    Attributes
    ----------
    name : str
        The prefix of all names.
    libm : bool
        Whether the program calls functions of math.h.
    memory : dict of Node to Memory
        The memory of x, y and the state in all functions.
    states : list of (Node, float)
        Members of the struct, and the initial number of all their elements.
    buffers : dict of str to int
        Other members of the struct, and their sizes.
    members : set of str
        Names that further members must not have.
    functions : list of Function
    counter : tuple of Array
        The number of the step and of the next step, if numbers depend on it.
    """

    name: str
    libm: bool
    memory: dict[Node, Memory] = field(default_factory=dict)
    states: list[tuple[Node, float]] = field(default_factory=list)
    buffers: dict[str, int] = field(default_factory=dict)
    members: set[str] = field(default_factory=lambda: set(KEYWORDS.split()))
    functions: list[Function] = field(default_factory=list)
    counter: tuple[Array, ...] = ()

    def input(self, shape: Sequence[int], is_token: bool = False) -> Array:
        """Return the input x of a function."""
        node = Node("input", shape, name="x")
        self.memory[node] = Memory("x", node.size)
        return node.array(np.int64 if is_token else np.float32)

    def state(self, states: State, suffix: str = "") -> State:
        """Return the arrays of a state, which become members of the struct."""
        return tuple(
            self.member(f"{leaf.name}{suffix}", leaf)
            if isinstance(leaf, Leaf)
            else self.state(leaf, f"{suffix}_{k}")
            for k, leaf in enumerate(states)
        )

    def member(self, name: str, leaf: Leaf) -> Array:
        """Return a member of the struct."""
        name = unique(name, self.members)
        shape: Any = leaf.dims(1).values()
        node = Node("input", tuple(shape), name=name)
        self.memory[node] = Memory(f"state->{name}", node.size)
        if node.size:
            self.states.append((node, leaf.rest))
        return node.array()

    def buffer(self, name: str, size: int) -> str:
        """Return the expression of a member of the struct that needs no initial number."""
        name = unique(name, self.members)
        self.buffers[name] = size
        return f"state->{name}"

    def of_step(self, **tables: Any) -> list[Array]:
        """Return the row of each table for the current step; later steps keep the last row."""
        now = self.member("step", Leaf("step", {}, {}))
        last = min(len(table) for table in tables.values()) - 1.0
        self.counter = now, arrays.minimum(now + 1.0, last)
        return [arrays.take(Weight.of(name, table), now) for name, table in tables.items()]

    def add(
        self,
        name: str,
        y: Array,
        begin: State,
        end: State,
        kind: str = "float",
        is_first: bool = False,
    ) -> None:
        """Add a function that computes y, and the state `end` from `begin`; the first function of a
        step counts it.
        """
        if is_first and self.counter:
            now, after = self.counter
            begin = *begin, now
            end = *end, after
        out = Node("input", y.shape, name="y")
        self.memory[out] = Memory("y", out.size)
        pairs = zip(leaves(begin), leaves(end), strict=True)
        stores = [Store(to.node, 0, arrays.noted(a)) for to, a in pairs if to.size]
        stores.append(Store(out, 0, arrays.noted(y)))
        self.functions.append(Function(name, kind, stores))

    def text(self, facts: Facts, quantized: bool) -> CProgram:
        """Return the finished program; with `quantized`, matrices are int8."""
        planned = [plan(function.stores) for function in self.functions]
        constants = tables([k for kernels in planned for k in kernels], self.name, quantized)
        operations = {op: LIBM[op] if self.libm else f"{self.name}_{op}" for op in LIBM}
        operations |= {op: f"{self.name}_{ours}" for op, ours in OURS.items()}
        reserved = [table.name for table in constants.values()]
        reserved += [f"{name}_scale" for name in reserved]
        blocks = self._blocks()
        reserved += [f"{self.name}_{function}" for function in blocks]
        writers = [
            Writer(k, Layout(k, self.memory, reserved), constants, operations) for k in planned
        ]
        functions: Lines = []
        for function, writer in zip(self.functions, writers, strict=True):
            functions += ["", *self._definition(function, writer.body(), not facts.run)]
        if facts.run:
            functions += ["", *facts.run]
        called = re.findall(rf"\b{self.name}_(\w+)\(", "\n".join(functions))
        needed = self._called(blocks, [*called, *facts.choices])
        sizes = facts.sizes | {
            "WEIGHT_BYTES": sum(table.bytes for table in constants.values()),
            "STATE_BYTES": 4
            * sum([node.size for node, _ in self.states] + [*self.buffers.values()]),
            "STACK_BYTES": max(writer.stack_bytes for writer in writers),
        }
        definitions = [table.lines for table in constants.values()]
        definitions += [self._texts(name, values) for name, values in facts.texts.items()]
        source = [
            f"/* {facts.about} */",
            "",
            f'#include "{facts.header}"',
            "",
            "#include <math.h>",
            *(line for name, block in needed.items() if name not in CHOICES for line in block),
            *(line for definition in definitions for line in ["", *definition]),
            "",
            *self._init(),
            *functions,
            *(line for name in facts.choices for line in needed[name]),
        ]
        changed, whole = np.sum([table.rounding for table in constants.values()] or [(0, 0)], 0)
        return CProgram(
            source="\n".join(source) + "\n",
            header=self._header(facts, sizes),
            weight_bytes=sizes["WEIGHT_BYTES"],
            state_bytes=sizes["STATE_BYTES"],
            stack_bytes=sizes["STACK_BYTES"],
            operations=sum(writer.operations for writer in writers),
            weight_error=float(np.sqrt(changed / whole)) if changed else 0.0,
        )

    def _definition(self, function: Function, body: Lines, is_public: bool) -> Lines:
        """Return the definition of a function."""
        text = "\n".join(body)
        unused = [
            f"(void){name};" for name in ("state", "x") if not re.search(rf"\b{name}\b", text)
        ]
        head = f"void {self.name}_{function.name}({self.arguments(function.kind)})"
        return [head if is_public else f"static {head}", "{", *indented([*unused, *body]), "}"]

    def arguments(self, kind: str, steps: str = "") -> str:
        """Return the arguments of a function, for a type of x and an optional number of steps."""
        more = f"int32_t {steps}, " if steps else ""
        return f"{self.name}_state *state, const {kind} *x, {more}float *y"

    def _init(self) -> Lines:
        lines: Lines = [] if self.states else ["(void)state;"]
        for node, rest in self.states:
            loop = [("unit", node.size)]
            lines += around(loop, [f"state->{node.name}[unit] = {literal(rest)};"])
        return [f"void {self.name}_init({self.name}_state *state)", "{", *indented(lines), "}"]

    def _texts(self, name: str, values: Sequence[str]) -> Lines:
        """Return the definition of an array of texts."""
        head = f"const char *const {self.name}_{name}[{len(values)}] = {{"
        return [head, *(f"    {quoted(value)}," for value in values), "};"]

    def _blocks(self) -> dict[str, str]:
        """Return the functions of functions.c by name, in the order of that file."""
        text = importlib.resources.files(__package__).joinpath("functions.c").read_text()
        for op, function in LIBM.items() if self.libm else ():
            text = re.sub(rf"(?<!static inline float )PREFIX_{op}\(", f"{function}(", text)
        blocks = text.rstrip().split("\n\n")[1:]
        return {re.findall(r"PREFIX_(\w+)\(", block)[0]: block for block in blocks}

    def _called(self, blocks: Mapping[str, str], names: Iterable[str]) -> dict[str, Lines]:
        """Return the named functions of functions.c, and all functions that they call."""
        todo = [name for name in names if name in blocks]
        needed = set()
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                todo += re.findall(r"PREFIX_(\w+)\(", blocks[name])
        words = {"CAPITAL_": f"{self.name.upper()}_", "PREFIX_": f"{self.name}_"}
        return {
            name: ["", *re.sub("|".join(words), lambda m: words[m[0]], block).split("\n")]
            for name, block in blocks.items()
            if name in needed
        }

    def _header(self, facts: Facts, sizes: dict[str, int]) -> str:
        """Return the text of the header."""
        capital = self.name.upper()
        arrays = {node.name: node.size for node, _ in self.states} | self.buffers
        members = [f"float {name}[{size}];" for name, size in arrays.items()]
        texts = [
            f"extern const char *const {self.name}_{text}[{len(values)}];\n"
            for text, values in facts.texts.items()
        ]
        texts += ["\n"] if texts else []
        return HEADER.format(
            about=facts.about,
            name=self.name,
            capital=capital,
            sizes="\n".join(
                f"#define {capital}_{size} {n} /* {MEANINGS[size]} */" for size, n in sizes.items()
            ),
            members="\n".join(indented(members or ["char unused;"])),
            texts="".join(texts),
            main=facts.main,
            choices="".join(CHOICES[choice].format(name=self.name) for choice in facts.choices),
        )


def quoted(text: str) -> str:
    """Return a text as a C literal of UTF-8 bytes, with escapes for all but plain characters."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    parts = (
        chr(byte) if byte in plain else f"\\{byte:03o}"
        for byte in text.encode(errors="surrogatepass")
    )
    return f'"{"".join(parts)}"'
