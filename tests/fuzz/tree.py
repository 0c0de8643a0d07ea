"""A random program as data: expressions, statements, and the Python source that they print as."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

INDENT = "    "


@dataclass(frozen=True)
class Expression:
    """A piece of source whose ``$0``, ``$1`` and so on stand for its parts.

    ``kind`` says what may stand in its place (:mod:`tests.fuzz.shrink`); ``variable`` is the name that it reads, if
    it is nothing but that.
    """

    kind: str
    template: str
    parts: tuple[Expression, ...] = ()
    variable: str = ""

    def __str__(self) -> str:
        return filled(self.template, self.parts)

    def walk(self) -> Iterator[Expression]:
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True)
class Statement:
    """One line with the statements in its block; ``name`` is that of its site or plate, ``binds`` of its variable.

    ``functional`` are the lines to write instead where nothing may be written in place.
    """

    header: str
    parts: tuple[Expression, ...] = ()
    body: tuple[Statement, ...] = ()
    name: str = ""
    binds: str = ""
    functional: str = ""

    def lines(self, *, functional: bool) -> Iterator[str]:
        header = self.functional if functional and self.functional else self.header
        yield from filled(header, self.parts).splitlines()
        for statement in self.body:
            yield from (INDENT + line for line in statement.lines(functional=functional))
        if header.endswith(":") and not self.body:
            yield INDENT + "pass"

    def walk(self) -> Iterator[Statement]:
        yield self
        for statement in self.body:
            yield from statement.walk()


@dataclass(frozen=True)
class Data:
    """A tensor that is given to the program: by position, in a dict or a list, or simply there when it is global."""

    name: str
    value: Expression
    place: str = "positional"

    @property
    def reference(self) -> str:
        return {"dict": f'tree["{self.name}"]', "list": f"items[{self.name[1:]}]"}.get(self.place, self.name)


@dataclass(frozen=True)
class Program:
    """A model, a guide, what they are called with, and how they are trained.

    ``sizes`` are those of the plates; the source says ``@p1`` for the size of plate ``p1``, ``@@p1`` for how many of
    its rows are drawn. ``grown`` is by how much they are larger in further calls; the program asks its arguments for
    them then. ``definitions`` are networks by name, ``wrappers`` handlers around model or guide.
    """

    seed: int
    model: tuple[Statement, ...]
    guide: tuple[Statement, ...]
    data: tuple[Data, ...] = ()
    definitions: tuple[tuple[str, str], ...] = ()
    wrappers: tuple[Statement, ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    sizes: tuple[tuple[str, int, int], ...] = ()
    double: bool = False
    optimizer: str = ""
    differs: tuple[str, ...] = field(default=())
    grown: tuple[int, ...] = ()

    def source(self, *, functional: bool = False) -> str:
        """The program; without writes in place where ``functional``, whose provenance eager Pyro loses."""
        body = [*self._function("model", self.model, functional), *self._function("guide", self.guide, functional)]
        for wrapper in self.wrappers:
            body += wrapper.lines(functional=functional)
        if self.grown:
            body = self._with_sizes("\n".join(body), "len(rows_{})").splitlines()
        arguments = "(" + "".join(f"{value}, " for value in self._arguments()).removesuffix(" ") + ")"
        body.append(f"args = {arguments}")
        if self.grown:
            body.append("others = [")
            body += [f"    {self._with_sizes(arguments, more=more)}," for more in self.grown]
            body.append("]")
        body.append(f"options = {dict(self.options)!r}")
        if self.optimizer:
            body.append(f"optimizer = {self.optimizer}")
        text = self._with_references("\n".join(body))
        constants = [f"{d.name} = {d.value}" for d in self.data if d.place == "global" and mentions(text, d.name)]
        networks = [code for name, code in self.definitions if mentions(text, name)]
        default = ["torch.set_default_dtype(torch.float64)"] if self.double else []
        text = "\n".join([*default, *networks, *constants, text])
        return self._with_sizes("\n".join([*imports(text), text])) + "\n"

    def _function(self, name: str, statements: Iterable[Statement], functional: bool) -> Iterator[str]:
        places = [d.place for d in self.data]
        names = [f"rows_{plate}" for plate, _, _ in self.sizes if self.grown]
        names += [d.name for d in self.data if d.place == "positional"]
        names += ["tree"] * ("dict" in places) + ["items"] * ("list" in places)
        yield f"def {name}({', '.join(names)}):"
        lines = [line for statement in statements for line in statement.lines(functional=functional)]
        yield from (INDENT + line for line in lines or ["pass"])

    def _arguments(self) -> Iterator[str]:
        yield from (f"torch.empty(@{plate})" for plate, _, _ in self.sizes if self.grown)
        yield from (str(d.value) for d in self.data if d.place == "positional")
        entries = [f'"{d.name}": {d.value}' for d in self.data if d.place == "dict"]
        if entries:
            yield "{" + ", ".join(entries) + "}"
        items = {int(d.name[1:]): str(d.value) for d in self.data if d.place == "list"}
        if items:
            yield "[" + ", ".join(items.get(i, "None") for i in range(max(items) + 1)) + "]"

    def _with_references(self, text: str) -> str:
        for d in self.data:
            text = text.replace(f"<{d.name}>", d.reference)
        return text

    def _with_sizes(self, text: str, formula: str = "", more: int = 0) -> str:
        for name, size, drawn in self.sizes:
            text = re.sub(rf"@@{name}\b", str(drawn), text)
            text = re.sub(rf"@{name}\b", formula.format(name) or str(size + more), text)
        return text

    def statements(self) -> Iterator[Statement]:
        for statement in (*self.model, *self.guide, *self.wrappers):
            yield from statement.walk()

    def size(self) -> tuple[int, int]:
        """How long it is, for the shrinking: every statement, expression and option counts, then every letter."""
        expressions = sum(1 for s in self.statements() for part in s.parts for _ in part.walk())
        statements = sum(1 for _ in self.statements())
        extras = (
            sum(len(value) if isinstance(value, dict) else 1 for _, value in self.options)
            + bool(self.optimizer)
            + self.double
            + len(self.wrappers)
        )
        extras += sum(d.place not in ("positional", "global") for d in self.data)
        count = 3 * statements + expressions + 2 * extras + sum(size for _, size, _ in self.sizes)
        return count, len(self.source())


def filled(template: str, parts: tuple[Expression, ...]) -> str:
    return re.sub(r"\$(\d)", lambda match: str(parts[int(match[1])]), template)


def mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


IMPORTS = {
    "math": "import math",
    "pyro": "import pyro",
    "dist": "import pyro.distributions as dist",
    "torch": "import torch",
    "poutine": "from pyro import poutine",
    "LocScaleReparam": "from pyro.infer.reparam import LocScaleReparam",
    "TransformReparam": "from pyro.infer.reparam import TransformReparam",
    "RejectionGamma": "from pyro.distributions.testing.rejection_gamma import RejectionGamma",
    "PyroModule": "from pyro.nn import PyroModule",
    "PyroParam": "from pyro.nn import PyroParam",
    "PyroSample": "from pyro.nn import PyroSample",
    "Vindex": "from pyro.ops.indexing import Vindex",
    "F": "import torch.nn.functional as F",
    "nn": "from torch import nn",
    "constraints": "from pyro.distributions import constraints",
    "T": "import pyro.distributions.transforms as T",
}


def imports(text: str) -> list[str]:
    return [line for name, line in IMPORTS.items() if mentions(text, name)]


Change = Callable[[Expression], Expression]


def rebuilt(expression: Expression, change: Change) -> Expression:
    """The expression with ``change`` made to each of its parts, and then to itself."""
    parts = tuple(rebuilt(part, change) for part in expression.parts)
    return change(replace(expression, parts=parts) if parts != expression.parts else expression)


def with_expressions(statements: tuple[Statement, ...], change: Change) -> tuple[Statement, ...]:
    """The statements with ``change`` made to every expression in them."""
    return tuple(
        replace(s, parts=tuple(rebuilt(p, change) for p in s.parts), body=with_expressions(s.body, change))
        for s in statements
    )
