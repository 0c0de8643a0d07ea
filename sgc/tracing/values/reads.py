"""Tensor values that a program reads in Python while it is captured.

A branch, ``.item()`` or a Boolean index makes the structure of the program depend on a value. Where that value
follows from the inputs alone, it is computed and becomes a guard: a later call with another value specialises
anew. Where it depends on a sample, no one structure is right, and the capture ends with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, PendingUnbackedSymbolNotFound
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.errors import DataDependenceError, SourceLine
from sgc.graph.aliasing import copies
from sgc.graph.effects import is_random
from sgc.graph.meta_keys import SITE
from sgc.tracing import tracer
from sgc.tracing.python.texts import REMEDY as TEXT_REMEDY
from sgc.tracing.source import current_line
from sgc.tracing.values.answers import asked_of
from sgc.tracing.values.autocast import Switches, switched_back, switches
from sgc.tracing.values.slices import GrowingGraph
from sgc.tracing.values.speculation import Speculation

_TEXTS = ("__format__", "__repr__")
READS = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__"),
        *_TEXTS,
        *("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "nonzero", "argwhere"),
    )
)
"""Functions that return values of a tensor to Python."""

UNKNOWN = (
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
    DataDependentOutputException,
    DynamicOutputShapeException,
)
"""What torch raises where a fake tensor would need a value."""

DATA_DEPENDENT = (DataDependenceError, *UNKNOWN)
"""Errors of code that needs a value which is not known during a capture."""

_REMEDY = (
    "a compiled program has one structure: write the choice with tensors (torch.where, indexing, poutine.mask), "
    "or marginalise the site"
)
_OR_ASSUME = '; a branch that nearly always goes one way can be assumed to: dynamic="speculate"'


@dataclass
class ReadGuard:
    """A value read during the capture: the graph that recomputes it, the nodes it starts from, and the value."""

    module: fx.GraphModule
    sources: tuple[fx.Node, ...]
    value: Tensor
    source: SourceLine | None


@dataclass
class Reads:
    """Answers reads from concrete values, each of which becomes a guard.

    ``before`` gives a tensor as it was before the capture, which may write into it (an increment of a count, say).
    ``names`` holds the tensors that stand for a text in the name of a site (see
    :mod:`sgc.tracing.python.sequential_plates`). ``check`` takes the conditions under which the program or a library
    does not raise, with what they are of; ``check_number`` those under which Python's numbers are what is recorded of
    them. ``speculation`` answers what is read of samples, where that is to be assumed. ``as_number`` makes a
    number of a tensor with one element, of which everything that is computed is recorded. ``growing`` says what a value
    depends on.
    """

    concrete_inputs: Mapping[str, Tensor]
    before: Callable[[Tensor], Tensor]
    guards: list[ReadGuard] = field(default_factory=list)
    names: dict[int, tuple[Tensor, str]] = field(default_factory=dict)
    check: Callable[[Tensor, str], None] | None = None
    check_number: Callable[[Tensor, str], None] | None = None
    speculation: Speculation | None = None
    as_number: Callable[[Tensor, type], Any] | None = None
    is_refusing: bool = False
    growing: GrowingGraph = field(default_factory=GrowingGraph)
    _autocast: Switches = field(default_factory=switches)

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of ``func`` on the concrete values of its traced arguments.

        :raises DataDependenceError: if one depends on a sample, and its value is not to be assumed.
        """
        values: dict[int, Any] = {}
        known = len(self.guards)
        try:
            if self.as_number is not None and func is Tensor.item and args[0].dtype is not torch.bool:
                return self.as_number(args[0], float if args[0].is_floating_point() else int)
            asked = asked_of(func, args, kwargs)
            if asked is not None:
                return self.read(asked, f"Tensor.{getattr(func, '__name__', func)}", Tensor.item)
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    values[id(leaf)] = self.evaluate(leaf, f"Tensor.{getattr(func, '__name__', func)}")
        except DataDependenceError as error:
            if self.speculation is None or self.is_refusing:
                raise
            del self.guards[known:]
            return self.speculation.answer(func, args, kwargs, error)
        concrete_args, concrete_kwargs = tree_map_only(Tensor, lambda tensor: values[id(tensor)], (args, kwargs))
        if func is Tensor.__repr__ and args[0].requires_grad:  # the text names the history, which the value lacks
            raise DataDependenceError(
                "the program makes a text of a parameter", source=current_line(), remedy=TEXT_REMEDY
            )
        with tracer.concrete(), torch._C.DisableTorchFunction():
            return func(*concrete_args, **concrete_kwargs)

    def read(self, tensor: Tensor, reader: str, of_value: Callable[[Tensor], Any]) -> Any:
        """A function of the concrete value of a traced tensor, as :meth:`evaluate` gives it."""
        value = self.evaluate(tensor, reader)
        with tracer.concrete(), torch._C.DisableTorchFunction():
            return of_value(value)

    def numbers(self, tensor: Tensor) -> Any:
        """The numbers in a traced tensor: nested lists, or one number."""
        return self.read(tensor, "an operation on numbers", Tensor.tolist)

    def evaluate(self, tensor: Tensor, reader: str) -> Tensor:
        """The concrete value of a traced tensor that depends on no sample; it becomes a guard.

        :raises DataDependenceError: if it depends on a sample.
        """
        made = self.computed(tensor, reader)
        if made.sources:
            self.guards.append(made)
        return made.value

    def computed(self, tensor: Tensor, reader: str) -> ReadGuard:
        """How the concrete value of a traced tensor follows from the inputs, and what it is.

        :raises DataDependenceError: if it depends on a sample.
        """
        if self.is_refusing:
            raise DataDependenceError(f"{reader} reads a value that is to stay out of the guards")
        if not tracer.is_capturing():
            raise DataDependenceError(
                f"{reader} reads a value within an autograd.Function",
                source=current_line(),
                remedy="write the choice with tensors (torch.where), in forward and backward alike",
            )
        node = tracer.node_of(tensor)
        needed = self.growing.needed([node])
        random = [other for other in needed if is_random(other)]
        if random:
            sites = [site for other in needed if (site := SITE.of(other)) is not None]
            source, is_branch = current_line(), reader.endswith("__bool__")
            if sites:
                raise DataDependenceError(
                    f"{reader} reads the value of a sample, so that the program's structure depends on it",
                    site=sites[-1],
                    source=source,
                    remedy=f"{TEXT_REMEDY}; {_REMEDY}" if reader.endswith(_TEXTS) else _REMEDY + _OR_ASSUME * is_branch,
                )
            raise DataDependenceError(
                f"{reader} reads a random number ({random[-1].target}) drawn outside of any site",
                source=source,
                remedy=_REMEDY,
            )
        module, sources = self.growing.slice_of(node, needed)
        origins = [self.concrete(origin) for origin in sources]
        with tracer.concrete(), torch._C.DisableTorchFunction(), torch.no_grad(), switched_back(self._autocast):
            value = module(*copies([self.before(origin) for origin in origins]))
        return ReadGuard(module, sources, value, current_line())

    def unknown(self, name: str, arguments: Any) -> DataDependenceError:
        """The error for an operation that needs values, with the sample that they depend on."""
        nodes = [tracer.node_of(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        sites = [site for other in self.growing.needed(nodes) if (site := SITE.of(other)) is not None]
        return DataDependenceError(
            f"{name} needs values that are known only at run time",
            site=sites[-1] if sites else None,
            source=current_line(),
            remedy=f"{_REMEDY}; what depends on data alone can be computed beforehand and passed as an argument",
        )

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Make every read an error, so that none becomes a guard."""
        self.is_refusing = True
        try:
            yield
        finally:
            self.is_refusing = False

    def concrete(self, node: fx.Node) -> Tensor:
        """The tensor that a placeholder or attribute of the graph stands for."""
        if node.op == "placeholder":
            return self.concrete_inputs[node.name]
        value = getattr(tracer.current_tracer().root, str(node.target))
        assert isinstance(value, Tensor)
        return value
