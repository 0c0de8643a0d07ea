"""Which nodes may run as one operator on stacked operands, and which nodes may share such an operator.

The batched form of an operator is ``torch.vmap`` of it, so an operator is batched when vmap has a rule for it; without
one vmap would loop over the members, which gains nothing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.config import Rng
from sgc.graph.effects import is_random, written_arguments

aten = torch.ops.aten

LARGEST = 4096
"""The size of a value, in elements, above which batching costs more in copies than it saves in calls."""

_MORE_POINTWISE = frozenset(
    {
        aten.binary_cross_entropy_with_logits.default,
        aten.cauchy.default,
        aten.copy.default,
        aten.exponential.default,
        aten.fill.Scalar,
        aten.geometric.default,
        aten.log_normal.default,
        aten.normal_functional.default,
        aten.uniform.default,
        torch.ops.prims.convert_element_type.default,
    }
)
"""Pointwise operators that torch does not tag as such."""

_JOINS = frozenset({aten.stack.default, aten.cat.default})
"""Operators that :mod:`~sgc.emit.rewrites.batching.rows` handles better."""

RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})

_IDLE = RESHAPES | {
    aten.alias.default,
    aten.copy.default,
    aten.detach.default,
    aten.expand.default,
    aten.squeeze.dim,
    aten.sum.default,
}
"""Operators that change nothing for some shapes."""


def tensor_of(node: fx.Node) -> Tensor | None:
    """The fake value of a node that holds one strided tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) and value.layout is torch.strided else None


def leaves(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, in order, each as often as it occurs."""
    return [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]


def with_leaves(node: fx.Node, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with ``values`` in the place of the :func:`leaves`."""
    remaining = iter(values)
    args, kwargs = tree_map_only(fx.Node, lambda _: next(remaining), (node.args, node.kwargs))
    return tuple(args), dict(kwargs)


def call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """A new node at the insertion point of the graph, with its fake value."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.map_arg(args, lambda argument: argument.meta["val"]))
    return node


def is_batchable(node: fx.Node, rng: Rng) -> bool:
    """Whether the node may be a member of a group; random ones only where other numbers may be drawn."""
    value = tensor_of(node)
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or value is None:
        return False
    if value.numel() > LARGEST or (is_random(node) and rng == "torch") or written_arguments(node):
        return False
    operands = leaves(node)
    held = [tensor_of(operand) for operand in operands]
    if any(operand is None or operand.device != value.device for operand in held):
        return False  # a number on the CPU mixes with tensors on a GPU, a row of numbers does not
    if not operands and not is_random(node):
        return True  # a constant, like all of its kind
    return _is_pointwise(node) or (node.target not in _JOINS and _has_rule(node.target))


def predecessors(nodes: Iterable[fx.Node], rng: Rng) -> dict[fx.Node, list[fx.Node]]:
    """The nodes that each node must come after: its arguments and, to keep random operators in order, the last such.

    Random operators that may be batched may also change places.
    """
    before: dict[fx.Node, list[fx.Node]] = {}
    previous: fx.Node | None = None
    for node in nodes:
        before[node] = node.all_input_nodes
        if is_random(node) and not is_batchable(node, rng):
            if previous is not None and previous not in before[node]:
                before[node] = [*before[node], previous]
            previous = node
    return before


@functools.cache
def _has_rule(target: torch._ops.OpOverload) -> bool:
    # vmap has no public way to ask; its loop over members is chosen where no kernel is registered under these keys.
    keys = ("FuncTorchBatched", "FuncTorchBatchedDecomposition", "FuncTorchVmapMode")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key) for key in keys)


def signature(node: fx.Node) -> Hashable:
    """Equal for nodes that may share one operator: the operator, operands' shapes and types, every other argument.

    A large operand is not copied into a stack; it must be the same node for all members.
    """

    def freeze(value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            held = tensor_of(value)
            if held is None or held.numel() > LARGEST:
                return value
            return tuple(held.shape), held.dtype, held.device
        if isinstance(value, (list, tuple)):
            return tuple(freeze(item) for item in value)
        if isinstance(value, dict):
            return tuple((key, freeze(item)) for key, item in value.items())
        return type(value), value

    return node.target, freeze(node.args), freeze(node.kwargs)


def passed_on(node: fx.Node) -> fx.Node | None:
    """The argument whose value the node has, if it is such a node: the same elements in the same shape."""
    place = 1 if node.target is aten.copy.default else 0
    if node.target not in _IDLE or not isinstance(node.args[place], fx.Node):
        return None
    value, operand = tensor_of(node), tensor_of(cast("fx.Node", node.args[place]))
    if value is None or operand is None or value.dtype is not operand.dtype or value.shape != operand.shape:
        return None
    if value.device != operand.device or (node.target is aten.sum.default and value.dim() > 0):
        return None
    return cast("fx.Node", node.args[place])


def row_of(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """``(x, dim, i)`` if the node is ``x.select(dim, i)`` or ``x.unbind(dim)[i]``, counted from the front."""
    if node.target is aten.select.int:
        source, dim, index = node.args
    elif node.target is operator.getitem and cast("fx.Node", node.args[0]).target is aten.unbind.int:
        (source, dim), index = (*cast("fx.Node", node.args[0]).args, 0)[:2], node.args[1]
    else:
        return None
    held = tensor_of(cast("fx.Node", source))
    if held is None or not isinstance(dim, int) or not isinstance(index, int):
        return None
    dim %= held.dim()
    return cast("fx.Node", source), dim, index % held.shape[dim]


def run_batched(node: fx.Node, operands: list[Tensor | None], shared: list[Any], count: int) -> Tensor:
    """Run the operator of ``count`` nodes that have the signature of ``node``.

    :param operands: for each of the :func:`leaves` a tensor whose rows are the members' operands, or None.
    :param shared: for each of the leaves without a tensor of rows the operand of all members.
    :return: a tensor whose rows are the members' values.
    """
    target: Any = node.target
    if is_random(node):
        # Each member draws for itself, also where all have the same operands.
        operands = [o if o is not None else s.expand(count, *s.shape) for o, s in zip(operands, shared, strict=True)]
    if _is_pointwise(node):
        value = tensor_of(node)
        assert value is not None
        aligned = [s if o is None else _align(o, 1 + value.dim()) for o, s in zip(operands, shared, strict=True)]
        args, kwargs = with_leaves(node, aligned)
        return target(*args, **kwargs)
    if target in RESHAPES:
        target = aten.reshape.default  # rows may be strided otherwise than the members were
    elif target is aten.slice_scatter.default:
        target = _slice_scatter

    def member(_: Tensor, *rows: Tensor) -> Tensor:
        given = iter(rows)
        chosen = [s if o is None else next(given) for o, s in zip(operands, shared, strict=True)]
        args, kwargs = with_leaves(node, chosen)
        return target(*args, **kwargs)

    stacked = [operand for operand in operands if operand is not None]
    # vmap needs one operand with rows; a random operator without operands (rand) has none.
    counted = stacked[0] if stacked else torch.empty(count)
    return torch.vmap(member, randomness="different")(counted, *stacked)


def _slice_scatter(
    whole: Tensor, part: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """Torch's rule for vmap wants bounds that lie within the tensor, counted from its start."""
    start, end, step = slice(start, end, step).indices(whole.shape[dim])
    return aten.slice_scatter.default(whole, part, dim, start, end, step)


def _is_pointwise(node: fx.Node) -> bool:
    """Whether the operator runs on stacked operands as it is, broadcasting them."""
    target, operands = node.target, [tensor_of(operand) for operand in leaves(node)]
    assert isinstance(target, torch._ops.OpOverload)
    if not operands or (torch.Tag.pointwise not in target.tags and target not in _MORE_POINTWISE):
        return False
    if target is aten.binary_cross_entropy_with_logits.default and node.args[4:] != (0,):
        return False  # it reduces
    # Numbers in 0-d tensors give way to others of their kind in the promotion of types, rows of numbers do not.
    return len({held.dtype for held in operands if held is not None and held.dtype is not torch.bool}) < 2


def _align(rows: Tensor, dims: int) -> Tensor:
    """Rows with as many dimensions more, after the first, as broadcasting with others takes."""
    missing = dims - rows.dim()
    return rows.reshape(len(rows), *(1,) * missing, *rows.shape[1:]) if missing else rows
