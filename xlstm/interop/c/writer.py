"""Kernels written as C: loops and their expressions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from xlstm.interop.c.arrays import CONDITIONS, Node, NotWrittenError
from xlstm.interop.c.kernels import LOADED, Kernel, Store, affine, part_at
from xlstm.interop.c.memory import Layout, Memory, unique
from xlstm.interop.c.tables import Table, literal
from xlstm.interop.common import Host
from xlstm.tracing.loop_nest import contiguous_steps, loop_nest
from xlstm.tracing.writers import ARITHMETIC

UNROLLED = 8  # unrolled columns of a matrix in a loop over its rows
VARIABLES = ("part", "head", "row", "unit")  # of loops, the innermost last
FORMS = {**ARITHMETIC, "and": "{} && {}", "where": "{} ? {} : {}"}
BINDING = {"where": 0, "and": 1, "less": 2, "less_equal": 2, "add": 3, "subtract": 3}
BINDING |= {"multiply": 4, "divide": 4, "negative": 5}
TIGHTEST = 6
LAYER = re.compile(r".*?\b\d+|[^.]*")  # such as blocks.0 in blocks.0.up
Lines = list[str]
Loops = Sequence[tuple[str, int]]  # variable and size of each loop, the outermost first


class Term:
    """A number within a loop: an operation on other terms, or a load from memory."""

    def __init__(self, node: Node, places: Host, args: Sequence[Term] = ()) -> None:
        self.node = node
        self.places = places
        self.args = args
        self.users: list[Term | None] = []  # None is a store
        self.variable = ""
        # the line of the formula
        self.name = node.parts.get((int(places.min()), places.size), node.name)

    @property
    def is_variable(self) -> bool:
        """Whether the term becomes a variable: it is used several times, or ends a line of the
        formula.
        """
        if not self.args:
            return self.users.count(None) > 1 and self.node.op != "constant"
        (user, *others) = self.users
        return bool(others) or (user is not None and user.node.line != self.node.line)


@dataclass
class Block:
    """The statements of a layer, and the local memory that they use, by name."""

    layer: str | None
    lines: Lines = field(default_factory=list)
    memory: dict[str, Memory] = field(default_factory=dict)


class Writer:
    """A writer of kernels as C.

    Parameters
    ----------
    kernels : list of Kernel
    layout : Layout
    tables : dict of Node to Table
    names : dict of str to str
        The C function of each operation.

    Attributes
    ----------
    stack_bytes : int
        Bytes of local arrays.
    operations : int
        Number of operations.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        layout: Layout,
        tables: Mapping[Node, Table],
        names: Mapping[str, str],
    ) -> None:
        self.kernels = kernels
        self.layout = layout
        self.tables = tables
        self.names = names
        self.stack_bytes = 0
        self.operations = 0
        self.touched: dict[str, Memory] = {}  # local memory that the current block uses
        self.read = {
            node
            for kernel in kernels
            for node, _ in kernel.loads
            if node not in {store.to for store in kernel.stores}
        }

    def body(self) -> Lines:
        """Return the statements of all kernels, in a block for each layer."""
        blocks: list[Block] = []
        part = ""
        for kernel in self.kernels:
            section = kernel.stores[0].value.node.section or "input"
            layer = LAYER.match(section)
            if not blocks or blocks[-1].layer != (layer and layer[0]):
                blocks.append(Block(layer and layer[0]))
            self.touched = blocks[-1].memory
            lines = self._kernel(kernel)
            title = f"/* {f'layer {section}' if section.isdecimal() else section} */"
            blocks[-1].lines += lines if section == part else ["", title, *lines]
            part = section
        self.touched = {}
        copies = [line for copy in self.layout.copies for line in self._copy(*copy)]
        uses = [*(block.memory for block in blocks), self.touched]
        memory = {name: memory for used in uses for name, memory in used.items()}
        shared = [name for name in memory if sum(name in used for used in uses) > 1]
        lines = [memory[name].declaration for name in shared]
        largest = 0
        for block in blocks:
            own = [memory[name] for name in block.memory if name not in shared]
            largest = max(largest, sum(memory.size for memory in own))
            declarations = [memory.declaration for memory in own]
            lines += ["", "{", *indented([*declarations, *block.lines]), "}"]
        self.stack_bytes = 4 * (largest + sum(memory[name].size for name in shared))
        return lines + copies

    def _kernel(self, kernel: Kernel) -> Lines:
        node = kernel.alone
        if node is None:
            return self._pointwise(kernel)
        return self._product(node) if node.op == "product" else self._reduction(kernel, node)

    def _pointwise(self, kernel: Kernel) -> Lines:
        loops = self._loops(kernel, kernel.shape)
        own = {store.to for store in kernel.stores}
        terms: dict[tuple[Node, bytes], Term] = {}
        roots = [
            self._term(terms, own, store.value.node, store.value.places.reshape(-1))
            for store in kernel.stores
        ]
        several = len({id(root) for root in roots}) > 1
        for store, root in zip(kernel.stores, roots, strict=True):
            root.users += [None, None] if several else [None]
            root.name = root.name or store.to.name
        lines = self._variables(terms, loops)
        for store, root in zip(kernel.stores, roots, strict=True):
            to = self.layout.memory[store.to]
            if to.local and store.to not in self.read and not self.layout.is_copied(store):
                continue  # all its users are in this loop
            target = self._at(self.layout.target(store), np.arange(store.value.size), loops)
            comment = "" if root.variable else root.node.comment
            value = self._text(root, loops)
            if root.node.op in CONDITIONS:
                value = f"({value}) ? 1.0f : 0.0f"
            line = commented(f"{target} = {value};", comment)
            lines += [] if line in lines else [line]
        return around(loops, lines)

    def _copy(self, store: Store, memory: Memory) -> Lines:
        """Return the loop that copies a new state to its place."""
        to = self.layout.memory[store.to]
        loops = _named((memory.size,))
        places = np.arange(memory.size)
        target = self._at(Memory(to.name, to.size, store.start), places, loops)
        return around(loops, [f"{target} = {self._at(memory, places, loops)};"])

    def _reduction(self, kernel: Kernel, node: Node) -> Lines:
        """Return the loops of a sum or a maximum."""
        (a,) = node.args
        loops = self._loops(kernel, (*kernel.shape, a.shape[-1]), 1)
        sizes = [n for _, n in loops]
        n = next(n for n in range(len(loops)) if math.prod(sizes[:n]) == node.size)
        outer = loops[:n]
        terms: dict[tuple[Node, bytes], Term] = {}
        root = self._term(terms, set(), a.node, a.places.reshape(-1))
        root.users.append(None)
        lines = self._variables(terms, loops)
        value = self._text(root, loops)
        result = self._at(self.layout.memory[node], np.arange(node.size), outer)
        gather = f"{result} += {value};"
        if node.op == "max":
            gather = f"{result} = {self.names['maximum']}({result}, {value});"
        begin = f"{result} = {'-INFINITY' if node.op == 'max' else '0.0f'};"
        inner = around(loops[n:], [*lines, gather])
        return around(outer, [commented(begin, node.comment), *inner])

    def _product(self, node: Node) -> Lines:
        """Return the loops of a product: over columns of the matrix, and inside over rows."""
        matrix, vector = node.args
        *batch, R, K = matrix.shape
        turned = np.swapaxes(self._located(matrix.node, matrix.places), -1, -2)
        inputs = self._located(vector.node, vector.places)
        outputs = np.arange(node.size).reshape(*batch, R)
        accesses = [
            turned,
            np.broadcast_to(inputs[..., None], turned.shape),
            np.broadcast_to(outputs[..., None, :], turned.shape),
        ]
        sizes = self._sizes(turned.shape, accesses, 2)[:-2]
        self.operations += 2 * turned.size
        heads = list(zip(VARIABLES, sizes, strict=False))
        column, row = ("column", K), ("row", R)
        result = self._at(self.layout.memory[node], outputs, [*heads, row])
        table = self.tables.get(matrix.node)
        kind = "float"
        scaled: Lines = []
        if table is not None and table.scales is not None:
            kind = "int8_t"
            of_row = matrix.places[..., 0] // matrix.node.shape[-1]
            scale = Memory(f"{table.name}_scale", table.scales.size)
            scaled = around([row], [f"{result} *= {self._at(scale, of_row, [*heads, row])};"])
        in_memory = self.layout.memory.get(matrix.node)
        source = in_memory or Memory(self.tables[matrix.node].name, matrix.node.size)
        first = np.zeros((*turned.shape[:-1], 1), int) + turned[..., :1]
        start = self._at(source, first, [*heads, column])
        place = affine(turned.reshape(-1, K, R)[0])
        if place is None:
            raise NotWrittenError("to_c: a matrix does not lie in memory at equal distances")
        down, across = place.steps
        lines = around([row], [f"{result} = 0.0f;"])
        whole = K - K % UNROLLED
        for begin, end, n in ((0, whole, UNROLLED), (whole, K, 1)):
            if begin == end:
                continue
            products = []
            values = []
            for k in range(n):
                places = vector.places[..., k : K - n + 1 + k]
                value = self._load(vector.node, places, [*heads, ("column", K - n + 1)])
                values.append(f"const float x{k} = {value};")
                weight = f"w[{_index(k * down, (across,), [row])}]"
                weight = weight if kind == "float" else f"(float){weight}"
                products.append(f"{weight} * x{k}")
            sums = f"{result} += {' + '.join(products)};"
            step = "column++" if n == 1 else f"column += {n}"
            head = f"for (int32_t column = {begin}; column < {end}; {step}) {{"
            body = [f"const {kind} *const w = &{start};", *values, *around([row], [sums])]
            lines += [head, *indented(body), "}"]
        return around(heads, lines + scaled)

    def _loops(self, kernel: Kernel, shape: tuple[int, ...], inner: int = 0) -> Loops:
        """Return the loops over a kernel; axes that are contiguous in memory become one loop."""
        accesses = [self._located(*load).reshape(shape) for load in kernel.loads]
        return _named(self._sizes(shape, accesses, inner))

    def _sizes(self, shape: tuple[int, ...], accesses: Sequence[Host], inner: int) -> Sequence[int]:
        """Return the sizes of loops along which all accesses have equal distances."""
        steps = [affine(access.reshape(shape)) for access in accesses]
        for access, step in zip(accesses, steps, strict=True):
            if step is None:
                whole = _divided(access.reshape(shape))
                cut = len(shape) - inner
                inner += whole[:cut] == shape[:cut]
                return self._sizes(whole, accesses, inner)
        arrays = [(shape, step.steps) for step in steps if step is not None]
        outer = loop_nest(shape, [*arrays, (shape, contiguous_steps(shape))], inner).sizes
        return (*outer, *shape[len(shape) - inner :])

    def _term(
        self, terms: dict[tuple[Node, bytes], Term], own: set[Node], node: Node, places: Host
    ) -> Term:
        """Return the term of a node's numbers, an existing one if there is one."""
        key = node, places.tobytes()
        if key in terms:
            return terms[key]
        if node.op == "join" and node not in self.layout.memory:
            part, inner = part_at(node, places)
            return self._term(terms, own, part.node, inner)
        args: list[Term] = []
        if node.op not in LOADED and (node in own or node not in self.layout.memory):
            args = [self._term(terms, own, a.node, a.places.reshape(-1)[places]) for a in node.args]
        terms[key] = term = Term(node, places, args)
        for a in args:
            a.users.append(term)
        return term

    def _variables(self, terms: Mapping[tuple[Node, bytes], Term], loops: Loops) -> Lines:
        """Return the statements of the terms that are variables."""
        variables = [term for term in terms.values() if term.is_variable]
        # variables outside of loops belong to the block
        names = set(self.layout.names) if loops else self.layout.names
        for term in reversed(variables):  # the last term of a line gets the line's name
            term.variable = unique(term.name, names)
        self.operations += math.prod(n for _, n in loops) * sum(
            bool(t.args) for t in terms.values()
        )
        lines = []
        for term in variables:
            kind = "int" if term.node.op in CONDITIONS else "float"
            name = term.variable
            term.variable = ""
            value = self._text(term, loops)
            term.variable = name
            ends = any(user is None or user.node.line != term.node.line for user in term.users)
            comment = term.node.comment if ends and term.args else ""
            lines.append(commented(f"const {kind} {name} = {value};", comment))
        return lines

    def _text(self, term: Term, loops: Loops) -> str:
        """Return the expression of a term."""
        if term.variable:
            return term.variable
        op = term.node.op
        if not term.args:
            return self._load(term.node, term.places, loops)
        if op not in FORMS:
            arguments = ", ".join(self._text(a, loops) for a in term.args)
            return f"{self.names[op]}({arguments})"
        operands = []
        for k, a in enumerate(term.args):
            text = self._text(a, loops)
            binding = TIGHTEST if a.variable or not a.args else BINDING.get(a.node.op, TIGHTEST)
            binding = BINDING["negative"] if not a.args and text.startswith("-") else binding
            if not a.args and (op == "and" or (op == "where" and k == 0)):
                text = f"({text} != 0.0f)"  # a condition stored as 1 or 0
            is_left = k == 0 and op not in ("where", "negative")
            is_tight = binding > BINDING[op] or (binding == BINDING[op] and is_left)
            operands.append(text if is_tight else f"({text})")
        return FORMS[op].format(*operands)

    def _located(self, node: Node, places: Host) -> Host:
        """Return the memory places of a node's numbers."""
        if node.op == "row":
            node = node.args[0].node
            places = places % (node.size // node.shape[0])
        return self.tables[node].position[places] if node in self.tables else places

    def _load(self, node: Node, places: Host, loops: Loops) -> str:
        """Return the expression of numbers in memory."""
        located = self._located(node, places)
        if node.op == "row":
            table, symbol = node.args
            token = self._load(symbol.node, np.zeros_like(places), loops)
            token = f"(int32_t){token}" if symbol.dtype == np.float32 else token
            of = self.tables[table.node]
            of_rows = of.position.reshape(table.node.shape[0], -1)[:, 0]
            stride = of_rows[min(1, len(of_rows) - 1)] - of_rows[0]
            place = affine(located.reshape([n for _, n in loops]))
            index = _index(*place, loops) if place is not None else ""
            row = token if stride == 1 else f"{token} * {stride}"
            text = f"{of.name}[{row if index == '0' else f'{row} + {index}'}]"
            return text if of.scales is None else f"(float){text} * {of.name}_scale[{token}]"
        if node.op == "constant" and node not in self.tables:
            return literal(node.values.flat[0])  # type: ignore[union-attr]
        if node in self.tables:
            return self._at(Memory(self.tables[node].name, node.size), located, loops)
        return self._at(self.layout.memory[node], located, loops)

    def _at(self, memory: Memory, places: Host, loops: Loops) -> str:
        """Return the expression of the numbers of a memory at places, one for each iteration."""
        if memory.local:
            self.touched[memory.name] = memory
        place = affine(places.reshape([n for _, n in loops]))
        if place is None:
            raise NotWrittenError("to_c: numbers do not lie in memory at equal distances")
        return memory.at(_index(memory.start + place.first, place.steps, loops))


def _named(sizes: Sequence[int]) -> Loops:
    return list(zip(VARIABLES[len(VARIABLES) - len(sizes) :], sizes, strict=True))


def _divided(places: Host) -> tuple[int, ...]:
    """Return a shape that splits an axis with unequal distances into two."""
    for axis, n in enumerate(places.shape):
        line = np.diff(np.moveaxis(places, axis, 0).reshape(n, -1), axis=0)
        turns = np.flatnonzero(np.any(line != line[:1], axis=1))
        if turns.size and n % (turns[0] + 1) == 0 and turns[0] > 0:
            block = int(turns[0]) + 1
            return (*places.shape[:axis], n // block, block, *places.shape[axis + 1 :])
    raise NotWrittenError("to_c: numbers do not lie in memory at equal distances")


def _index(first: int, steps: Sequence[int], loops: Loops) -> str:
    """Return the index expression that advances by steps along loops."""
    parts = [str(first)] if first else []
    for step, (variable, n) in zip(steps, loops, strict=True):
        if step and n > 1:
            parts.append(variable if step == 1 else f"{step} * {variable}")
    return " + ".join(parts) or "0"


def around(loops: Loops, lines: Lines) -> Lines:
    """Return statements inside loops, or unchanged without loops."""
    for variable, n in reversed(loops):
        head = f"for (int32_t {variable} = 0; {variable} < {n}; {variable}++) {{"
        lines = [head, *indented(lines), "}"]
    return lines


def indented(lines: Sequence[str]) -> Lines:
    return [f"    {line}" if line else "" for line in lines]


def commented(line: str, comment: str) -> str:
    return f"{line} /* {comment} */" if comment else line
