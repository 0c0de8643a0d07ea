"""Keeps each ``autograd.Function`` one node of the captured graph.

A Function has its own backward, which a trace above autograd would lose (it would record the operators of the
forward, whose derivatives may not even exist: ``_sample_dirichlet``). Its ``apply`` is recorded as one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import CheckpointFunction

from sgc.graph.meta_keys import DRAWS
from sgc.tracing import tracer


class _SeesRandomness(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class FunctionLeaf:
    """``cls.apply`` as the target of an fx node: its tensor arguments are the node's, the rest is kept here."""

    def __init__(self, cls: type[Function], spec: TreeSpec, static: tuple[Any, ...]) -> None:
        self.cls = cls
        self._spec = spec
        self._static = static
        # The name appears in printed code; the module must stay this one, or fx imports the class instead.
        self.__name__ = f"{cls.__name__}_apply"

    def __call__(self, *tensors: Tensor) -> Any:
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is Tensor else leaf for leaf in self._static]
        return original_apply(self.cls, *tree_unflatten(leaves, self._spec))


def original_apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    """``cls.apply`` as torch has it."""
    return _APPLY.__get__(None, cls)(*args, **kwargs)


_APPLY: Any = inspect.getattr_static(Function, "apply")
"""A classmethod of Python; from torch 2.14 on one of C."""


@contextmanager
def functions_as_leaves() -> Iterator[None]:
    """Record each ``autograd.Function`` that is applied to traced tensors as one node."""

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        flat, spec = tree_flatten(args)
        flat = [leaf.read() if isinstance(leaf, tracer.Traced) else leaf for leaf in flat]
        args = tree_unflatten(flat, spec)
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        if kwargs or not tensors or not tracer.is_capturing():
            return original_apply(cls, *args, **kwargs)
        if cls is CheckpointFunction:
            run, _, *inputs = args
            return run(*inputs)  # what is computed again for the gradient is the same
        with tracer.untraced(), _SeesRandomness() as randomness:
            result = original_apply(cls, *args)
        leaf = FunctionLeaf(cls, spec, tuple(Tensor if isinstance(x, Tensor) else x for x in flat))
        active = tracer.current_tracer()
        node = active.create_node("call_function", leaf, tuple(tracer.node_of(t) for t in tensors), {})
        node.meta["val"] = result
        DRAWS.put(node, randomness.seen)
        if isinstance(result, Tensor):
            tracer.bind(result, node)
            return result
        for position, part in enumerate(result):
            if isinstance(part, Tensor):
                item = active.create_node("call_function", _getitem, (node, position), {})
                tracer.bind(part, item)
        return result

    with applying(apply):
        yield


@contextmanager
def applying(apply: Callable[..., Any]) -> Iterator[None]:
    """``apply(cls, *args)`` is what the ``apply`` of every ``autograd.Function`` does."""
    Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Function.apply = _APPLY  # type: ignore[method-assign]


def _getitem(values: Any, position: int) -> Any:
    return values[position]


def own_functions(module: fx.GraphModule) -> set[type[Function]]:
    """The classes that a graph applies, but for those of torch's and Pyro's own."""
    applied = {node.target.cls for node in module.graph.nodes if isinstance(node.target, FunctionLeaf)}
    return {cls for cls in applied if cls.__module__.partition(".")[0] not in ("torch", "pyro")}
