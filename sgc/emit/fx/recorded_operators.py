"""Records the operators of a function as a graph: what ``make_fx`` does, at a third of its cost.

``make_fx`` serves every program of torch; here there are only fake tensors of known sizes and operators of the
dispatcher. Whatever else comes (a value that is read, a size that depends on data, a higher-order operator) is left to
``make_fx``, which then traces the function from its start.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._library.utils import get_layout_constraint_tag
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import snapshot_fake
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, autograd_would_have_decomposed
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.emit.fx.lazy_modules import graph_module, trace_fake

_aten, _prim = torch.ops.aten, torch.ops.prim


def record(function: Callable[..., Any], examples: Sequence[Tensor]) -> fx.GraphModule:
    """The aten operators of ``function(*examples)``, on fake tensors.

    :param function: gives a list of tensors; may be called twice.
    """
    mode = detect_fake_mode(list(examples)) or FakeTensorMode(
        allow_fallback_kernels=True, allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True
    )
    recorder = _Recorder(mode)
    caches_casts = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # it would give tensors of which no operator is recorded
    try:
        inputs = [recorder.input(*named) for named in zip(_names(function, len(examples)), examples, strict=True)]
        with mode, recorder:
            results = function(*inputs)
        return recorder.module(results)
    except _NotRecorded:
        return trace_fake(function, examples)
    finally:
        torch.set_autocast_cache_enabled(caches_casts)


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """The names that ``make_fx`` gives to inputs."""
    parameters = inspect.signature(function).parameters.values()
    plain = len(parameters) == count and all(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters)
    return [f"{each.name}_1" for each in parameters] if plain else [f"arg{i}_1" for i in range(count)]


class _NotRecorded(Exception):
    """What comes is left to ``make_fx``."""


class _Recorder(TorchDispatchMode):
    """Appends a node to a graph for each operator that runs below autograd."""

    supports_higher_order_operators = True

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode
        self._fakes = _FakeResults(mode)
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._held: list[Tensor] = []  # so that no other tensor takes the identity of one that is known
        self._attributes: dict[str, Tensor] = {}
        self._attribute_names: dict[int, str] = {}

    def input(self, name: str, example: Tensor) -> Tensor:
        """A fake tensor like an example, as an input of the graph."""
        tensor = example if isinstance(example, FakeTensor) else self._mode.from_tensor(example, static_shapes=True)
        node = self._graph.placeholder(name)
        self._note(tensor, node)
        return tensor

    def module(self, results: Any) -> fx.GraphModule:
        """The module that gives these results."""
        self._graph.output(tree_map_only(Tensor, self._node_of, results))
        for node in self._graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = tree_map_only(FakeTensor, _without_history, node.meta["val"])
        return graph_module(self._attributes, self._graph)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is _aten.detach.default and id(args[0]) in self._nodes:
            same_memory = func(*args)  # which autograd asks for often, to keep it for the gradient
            self._note(same_memory, self._nodes[id(args[0])])
            return same_memory
        if not isinstance(func, OpOverload) or not _UNKNOWN.isdisjoint(func.tags):
            raise _NotRecorded
        if _is_composite(func) and autograd_would_have_decomposed(func, tree_leaves((args, kwargs))):
            with self:
                return func.decompose(*args, **kwargs)
        if func is _aten.lift_fresh.default:
            func = _aten.lift_fresh_copy.default
        operands = tuple(map(self._argument, args))
        options = {name: self._argument(value) for name, value in kwargs.items()}
        result = self._fakes.computed(func, args, kwargs)
        node = self._graph.create_node("call_function", func, operands, options, name=func.overloadpacket.__name__)
        if _needs_strides(func):  # Inductor gives such an operator operands that lie in memory as these
            node.meta["eager_input_vals"] = map_aggregate((node.args, node.kwargs), _value_of)
        self._note(result, node)
        return result

    def _note(self, value: Any, node: fx.Node) -> None:
        """Let a node stand for what an operator gave, and others for its parts."""
        node.meta.setdefault("val", value)
        if isinstance(value, Tensor):
            if not isinstance(value, FakeTensor) or any(type(size) is not int for size in value.shape):
                raise _NotRecorded
            self._nodes[id(value)] = node
            self._held.append(value)
        elif isinstance(value, (list, tuple)):
            for position, part in enumerate(value):
                if part is not None:
                    self._note(part, self._graph.call_function(operator.getitem, (node, position)))
        elif value is not None:
            raise _NotRecorded

    def _argument(self, value: Any) -> Any:
        """An argument of an operator, with nodes for tensors."""
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise _NotRecorded
        return [self._argument(part) for part in value] if isinstance(value, (list, tuple)) else value

    def _node_of(self, tensor: Tensor) -> fx.Node:
        node = self._nodes.get(id(tensor))
        if node is not None:
            return node
        if isinstance(tensor, FakeTensor) or type(tensor) not in (Tensor, torch.nn.Parameter):
            raise _NotRecorded
        if id(tensor) not in self._attribute_names:
            name = self._attribute_names[id(tensor)] = f"_tensor_constant{len(self._attributes)}"
            self._attributes[name] = tensor
        node = self._graph.get_attr(self._attribute_names[id(tensor)])
        node.meta["val"] = self._mode.from_tensor(tensor, static_shapes=True)
        return node


class _FakeResults:
    """Computes operators on fake tensors, each kind of call once: programs make the same calls again and again.

    Torch keeps what it has computed too, but takes longer to look it up than the operator would.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Any, tuple[Any, ...]] = {}

    def computed(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """The result of an operator."""
        key = None
        if _makes_one_tensor(func):
            try:
                key = func, _key(args), _key(tuple(kwargs.items()))
            except _NoKey:
                key = None
        known = self._known.get(key) if key is not None else None
        if known is not None:
            shape, strides, dtype, device = known
            with no_dispatch():
                memory = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
                return FakeTensor(self._mode, memory, device)
        result = func(*args, **kwargs)
        if key is not None and _is_new(result, args):
            self._known[key] = (*_key(result)[:3], result.fake_device)
        return result


class _NoKey(Exception):
    """Something that a call depends on has no key."""


def _key(value: Any) -> Any:
    """Equal for arguments with which an operator gives results that are alike."""
    if isinstance(value, FakeTensor):
        if value.layout is not torch.strided or value.is_complex() or value.constant is not None:
            raise _NoKey
        return value.shape, value.stride(), value.dtype, value.fake_device
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    if not isinstance(value, _PLAIN):
        raise _NoKey
    return type(value), value


_PLAIN = (int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))


def _is_new(result: Any, args: Any) -> bool:
    """Whether the result of an operator is a tensor with memory of its own, of which nothing else is to be known."""
    if not isinstance(result, FakeTensor) or result.layout is not torch.strided or result.is_complex():
        return False
    if any(type(size) is not int for size in result.shape) or result.storage_offset() or result.constant is not None:
        return False
    memory = result.untyped_storage()._cdata
    used = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return all(tensor.untyped_storage()._cdata != memory for tensor in used)


@cache
def _makes_one_tensor(func: OpOverload) -> bool:
    """Whether an operator of torch gives one tensor, writes nothing, and does not say that it gives a view."""
    schema = func._schema
    one = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    plain = one and schema.returns[0].alias_info is None and not schema.is_mutable
    return plain and func.namespace in ("aten", "prims") and func is not _aten.lift_fresh_copy.default


_UNKNOWN = {torch.Tag.data_dependent_output, torch.Tag.inplace_view}
"""Tags of operators that read values into Python, or change what a tensor is."""


@cache
def _is_composite(func: OpOverload) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) or key in func.py_kernels


@cache
def _needs_strides(func: OpOverload) -> bool:
    return bool(get_layout_constraint_tag(func) == torch.Tag.needs_exact_strides)


def _value_of(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else None


def _without_history(tensor: FakeTensor) -> Tensor:
    """A tensor as it is to be kept: autograd has noted on it where it comes from."""
    kept = tensor if not tensor.requires_grad and tensor.constant is None else snapshot_fake(tensor)
    assert kept is not None
    return kept
