"""Calls made only for the error that they may raise, as conditions of validity.

``torch._assert_async``, a custom operator that looks at data and returns nothing, a Cholesky factor that nobody uses:
no value of the program depends on them, so that a compiler drops them. A condition of validity is computed with the
program on each backend, and where it does not hold Pyro runs, and raises the error.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_flatten, tree_unflatten

from sgc.graph.effects import returns_nothing, written_arguments
from sgc.graph.meta_keys import KEEPS
from sgc.tracing.leaves.opaque_calls import numbered
from sgc.tracing.values.validation import Requirement

_aten = torch.ops.aten


class CheckingCall:
    """A call of an operator as a function of its tensors that returns whether it does not raise."""

    def __init__(self, node: fx.Node) -> None:
        self._target = node.target
        self._leaves, self._spec = tree_flatten((node.args, node.kwargs))
        self.number = numbered(self)

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, fx.Node) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        self._target(*args, **kwargs)  # type: ignore[operator]
        return torch.tensor(True)


def checks_of_calls(graph: fx.Graph) -> Iterator[Requirement]:
    """Replace each checking call by a condition of validity."""
    mode = detect_fake_mode([node.meta["val"] for node in graph.nodes if "val" in node.meta])
    for node in list(graph.nodes):
        if not _only_checks(node):
            continue
        tensors = [leaf for leaf in tree_flatten((node.args, node.kwargs))[0] if isinstance(leaf, fx.Node)]
        # Without tensors the outcome is the same as in the prototype, where it did not raise.
        if tensors and mode is not None and all(_is_tensor(tensor) for tensor in tensors):
            with mode, graph.inserting_before(node):
                yield _requirement(graph, node, tensors)
        graph.erase_node(node)


def _only_checks(node: fx.Node) -> bool:
    if node.users or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if returns_nothing(node):
        return not written_arguments(node) and node.target is not _aten._linalg_check_errors.default
    # A matrix that has no factor or inverse is an error of torch's.
    name = node.target._schema.name.partition("::")[2]
    return node.target.namespace == "aten" and (name.startswith("linalg_") or name in ("cholesky", "inverse"))


def _is_tensor(node: fx.Node) -> bool:
    return node.op == "get_attr" or isinstance(node.meta.get("val"), Tensor)


def _requirement(graph: fx.Graph, node: fx.Node, tensors: list[fx.Node]) -> Requirement:
    if node.target in (_aten._assert_async.default, _aten._assert_async.msg):
        truth = graph.call_function(_aten.ne.Scalar, (tensors[0], 0))
        truth.meta["val"] = torch.empty((), dtype=torch.bool, device=tensors[0].meta["val"].device)
        return Requirement(truth, "an assertion of the program", None)
    call = CheckingCall(node)
    holds = graph.call_function(torch.ops.sgc.opaque_check.default, (tensors, call.number))
    devices = [tensor.meta["val"].device for tensor in tensors if "val" in tensor.meta]
    holds.meta["val"] = torch.empty((), dtype=torch.bool, device=devices[0] if devices else None)
    KEEPS.put(holds, call)
    return Requirement(holds, f"what {node.target} checks", None, opaque=True)
