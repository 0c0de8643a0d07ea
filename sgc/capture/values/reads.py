"""What a program reads from its tensors in Python while it is captured.

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
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.capture import tracer
from sgc.capture.python.deepcopy import deep_copy
from sgc.capture.python.nested_lists import stacked
from sgc.capture.python.packed_sequences import OF_PACKED, on_packed
from sgc.capture.python.refusals import refuse_traced
from sgc.capture.python.texts import REMEDY as TEXT_REMEDY
from sgc.capture.python.texts import is_shown, shown
from sgc.capture.source import current_line, is_assertion, is_formatting, library_refusal
from sgc.capture.values.autocast import switched_back, switches
from sgc.capture.values.error_conditions import condition_of
from sgc.capture.values.masked_selection import MaskedSelection
from sgc.capture.values.slices import dims_consumed, is_literal, slice_of
from sgc.capture.values.speculation import Speculation
from sgc.errors import DataDependenceError, SourceLine
from sgc.graph.effects import ancestors, dependencies, is_random

_TEXTS = ("__format__", "__repr__")
READS = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__"),
        *_TEXTS,
        *("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "nonzero", "argwhere"),
    )
)
"""Functions that give values of a tensor to Python."""

UNKNOWN = (
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
    DataDependentOutputException,
    DynamicOutputShapeException,
)
"""What torch raises where a fake tensor would need a value."""

_OF_SIZES = frozenset((torch.arange, torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn))
"""Functions that read tensors which they are given for numbers."""

_BY_NUMBERS = frozenset(
    (
        *(torch.narrow, Tensor.narrow, torch.tensor_split, Tensor.tensor_split, torch.split, Tensor.split),
        *(torch.chunk, Tensor.chunk, torch.nn.functional.pad),
    )
)
"""Functions that do so, but for the first argument."""

DATA_DEPENDENT = (DataDependenceError, *UNKNOWN)
"""What code raises during a capture that needs a value which is not known then."""

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
    value: Any
    source: SourceLine | None


@dataclass
class Reads(TorchFunctionMode):
    """Answers reads from concrete values, and rewrites 0-d indices, which would be reads, as tensor indices.

    ``before`` gives a tensor as it was before the capture, which may write into it (an increment of a count, say).
    ``names`` holds the tensors that stand for a text in the name of a site (see
    :mod:`sgc.capture.python.sequential_plates`). ``check`` takes the conditions under which the program or a library
    does not raise, with what they are of. ``speculation`` answers what is read of samples, where that is to be assumed.
    """

    concrete_inputs: Mapping[str, Tensor]
    before: Callable[[Tensor], Tensor]
    guards: list[ReadGuard] = field(default_factory=list)
    names: dict[int, tuple[Tensor, str]] = field(default_factory=dict)
    check: Callable[[Tensor, str], None] | None = None
    speculation: Speculation | None = None
    _refusing: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self._autocast = switches()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        refuse_traced(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if id(args[0] if args else None) in self.names:
            if name in ("__format__", "__repr__"):
                return self.names[id(args[0])][1]
            if name in ("__int__", "__index__") and is_formatting():
                return int(self.names[id(args[0])][1])
        if name == "__repr__" and is_shown():
            return shown(args[0])
        if func is Tensor.__deepcopy__:
            return deep_copy(*args)
        if name == "__bool__" and is_assertion():
            return self._assert(args[0])
        if name == "__bool__" and not self._refusing:
            refusal = library_refusal()
            if refusal is not None:
                if refusal.raises:
                    assert self.check is not None
                    self.check(args[0] if refusal.passes else args[0].logical_not(), "a condition of the library")
                return refusal.passes
        if func is torch._assert and isinstance(args[0], Tensor):
            self._assert(args[0])
            return None
        condition = condition_of(func, args, kwargs)
        if condition is not None and self.check is not None:
            self.check(condition, f"what {name} is given")
        if name in READS and not _concrete_call(args, kwargs):
            return self._read(func, args, kwargs)
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.data:
            return args[0].detach()
        if func is torch.broadcast_tensors:
            # Its results would all depend on all of its arguments.
            tensors = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
            shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
            return tuple(tensor if tensor.shape == shape else tensor.expand(shape) for tensor in tensors)
        if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], (list, tuple)):
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[0])):
                # The numbers are read one by one, so the result is on no device but the default one, unless asked for.
                device = kwargs.get("device") or torch.get_default_device()
                return stacked(args[0], device).detach().to(device, kwargs.get("dtype"))
        if func == Tensor.new_tensor and any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[1])):
            device, dtype = kwargs.get("device") or args[0].device, kwargs.get("dtype") or args[0].dtype
            return stacked(args[1], device).detach().to(device, dtype)
        if func in _BY_NUMBERS or func in _OF_SIZES:
            tensors, out = args[: func in _BY_NUMBERS], {"out": kwargs.pop("out")} if "out" in kwargs else {}
            numbers, kwargs = tree_map_only(Tensor, self._numbers, (args[len(tensors) :], kwargs))
            args, kwargs = (*tensors, *numbers), kwargs | out
        if name == "__getitem__" and isinstance(args[0], Tensor):
            return self._get(func, *args)
        if name == "__setitem__" and isinstance(args[0], Tensor):
            return self._set(func, *args)
        if name in OF_PACKED and (result := on_packed(name, args, self._numbers)) is not NotImplemented:
            return result
        try:
            result = func(*args, **kwargs)
        except UNKNOWN as error:
            raise self._unknown(name, (args, kwargs)) from error
        if func is torch.autograd.grad and not _is_differentiable(*args, **kwargs):
            return tree_map_only(Tensor, Tensor.detach, result)
        return result

    def _assert(self, condition: Tensor) -> bool:
        """Turn ``assert tensor`` into a condition that is computed with the compiled program."""
        assert self.check is not None
        self.check(condition, "an assertion of the program")
        return True

    def _get(self, func: Callable[..., Any], tensor: Tensor, index: Any) -> Any:
        if isinstance(index, Tensor) and index.dtype is torch.bool and index.dim() > 0:
            try:
                self.evaluate(index, "a Boolean index")
            except DataDependenceError as error:
                return MaskedSelection(tensor, index, error)
        return func(*self._index(tensor, index, write=False))

    def _set(self, func: Callable[..., Any], tensor: Tensor, index: Any, value: Any) -> None:
        if isinstance(value, MaskedSelection):
            value.write_to(tensor, index)
        elif isinstance(index, Tensor) and index.dtype is torch.bool and index.dim() == 0:
            # Indexing with a 0-d Boolean calls .item().
            given = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)
            tensor.copy_(torch.where(index, given, tensor))
        else:
            func(*self._index(tensor, index, write=True), value)

    def _read(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of ``func`` on the concrete values of its traced arguments, guarded."""
        values: dict[int, Any] = {}
        known = len(self.guards)
        try:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    values[id(leaf)] = self.evaluate(leaf, f"Tensor.{getattr(func, '__name__', func)}")
        except DataDependenceError as error:
            if self.speculation is None or self._refusing:
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

    def evaluate(self, tensor: Tensor, reader: str) -> Tensor:
        """The concrete value of a traced tensor that depends on no sample.

        :raises DataDependenceError: if it depends on a sample.
        """
        if self._refusing:
            raise DataDependenceError(f"{reader} reads a value that is to stay out of the guards")
        if not tracer.is_capturing():
            raise DataDependenceError(
                f"{reader} reads a value within an autograd.Function",
                source=current_line(),
                remedy="write the choice with tensors (torch.where), in forward and backward alike",
            )
        node = tracer.node_of(tensor)
        graph = tracer.current_tracer().graph
        depends = dependencies(graph)
        needed = ancestors([node], depends)
        random = [other for other in graph.nodes if other in needed and is_random(other)]
        if random:
            marks = [other.meta["sgc_mark"] for other in graph.nodes if other in needed and "sgc_mark" in other.meta]
            source, is_branch = current_line(), reader.endswith("__bool__")
            if marks:
                raise DataDependenceError(
                    f"{reader} reads the value of a sample, so that the program's structure depends on it",
                    site=marks[-1],
                    source=source,
                    remedy=f"{TEXT_REMEDY}; {_REMEDY}" if reader.endswith(_TEXTS) else _REMEDY + _OR_ASSUME * is_branch,
                )
            raise DataDependenceError(
                f"{reader} reads a random number ({random[-1].target}) drawn outside of any site",
                source=source,
                remedy=_REMEDY,
            )
        module, sources = slice_of(graph, node, needed)
        origins = [self.concrete(origin) for origin in sources]
        with tracer.concrete(), torch._C.DisableTorchFunction(), torch.no_grad(), switched_back(self._autocast):
            value = module(*(self.before(origin).detach().clone() for origin in origins))
        if sources:
            self.guards.append(ReadGuard(module, sources, value, current_line()))
        return value

    def _unknown(self, name: str, arguments: Any) -> DataDependenceError:
        """The error for an operation that needs values, with the sample that they depend on."""
        nodes = [tracer.node_of(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        graph = tracer.current_tracer().graph
        needed = ancestors(nodes, dependencies(graph))
        marks = [other.meta["sgc_mark"] for other in graph.nodes if other in needed and "sgc_mark" in other.meta]
        return DataDependenceError(
            f"{name} needs values that are known only at run time",
            site=marks[-1] if marks else None,
            source=current_line(),
            remedy=f"{_REMEDY}; what depends on data alone can be computed beforehand and passed as an argument",
        )

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Let every read be an error, so that none becomes a guard."""
        self._refusing = True
        try:
            yield
        finally:
            self._refusing = False

    def concrete(self, node: fx.Node) -> Tensor:
        """The tensor that a source of the program stands for."""
        if node.op == "placeholder":
            return self.concrete_inputs[node.name]
        value = getattr(tracer.current_tracer().root, str(node.target))
        assert isinstance(value, Tensor)
        return value

    def _number(self, end: Any) -> Any:
        if not isinstance(end, Tensor):
            return end
        value = self.evaluate(end, "a slice")
        with tracer.concrete(), torch._C.DisableTorchFunction():
            return value.item()

    def _numbers(self, tensor: Tensor) -> Any:
        value = self.evaluate(tensor, "an operation on numbers")
        with tracer.concrete(), torch._C.DisableTorchFunction():
            return value.tolist()

    def _index(self, tensor: Tensor, index: Any, *, write: bool) -> tuple[Tensor, Any]:
        parts = list(index) if isinstance(index, tuple) else [index]
        consumed = sum(dims_consumed(part) for part in parts)
        changed = False
        dim = 0
        result: list[Any] = []
        for part in parts:
            if isinstance(part, slice) and any(isinstance(end, Tensor) for end in (part.start, part.stop, part.step)):
                part, changed = slice(*(self._number(end) for end in (part.start, part.stop, part.step))), True
            mask_like = isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) and part.dim() > 0
            if mask_like and (not write or (not self._refusing and is_literal(part))):
                mask = self.evaluate(part, "a Boolean index")
                with tracer.concrete(), torch._C.DisableTorchFunction():
                    result.extend(mask.bool().nonzero(as_tuple=True))
                changed, dim = True, dim + part.dim()
                continue
            if isinstance(part, Tensor) and part.dim() == 0 and not part.dtype.is_floating_point:
                if part.dtype is torch.bool:
                    if not write:
                        value = self.evaluate(part, "a Boolean index")
                        with tracer.concrete(), torch._C.DisableTorchFunction():
                            part, changed = bool(value), True
                elif write:
                    part, changed = part.reshape(1), True
                else:
                    # Indexing with a 0-d integer calls .item(); a one-element index picks the same entry.
                    tensor = tensor[(slice(None),) * dim + (part.reshape(1),)]
                    part, changed = 0, True
            result.append(part)
            dim += tensor.dim() - consumed if part is Ellipsis else dims_consumed(part)
        return (tensor, tuple(result)) if changed else (tensor, index)


def _is_differentiable(*args: Any, create_graph: bool | None = None, **kwargs: Any) -> bool:
    """Whether ``torch.autograd.grad`` of these arguments gives what can be differentiated again."""
    return bool(args[4] if len(args) > 4 else create_graph)


def _concrete_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
