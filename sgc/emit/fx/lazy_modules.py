"""Graph modules whose Python is written when they are first run or read.

Most are only handed from pass to pass; to write each one's Python takes a tenth of the time that the passes take. The
class is private to torch (2.11 to 2.13), which uses it for this very purpose; a public one there is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, fx
from torch.fx._lazy_graph_module import _LazyGraphModule, _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx

from sgc.graph.sizes import is_sized_by_call


def graph_module(root: Any, graph: fx.Graph) -> fx.GraphModule:
    """A module of a graph, and of what it looks up in ``root``, a module or a dictionary."""
    return _LazyGraphModule(root, graph, class_name="Optimized")


def write_python(module: fx.GraphModule) -> None:
    """Have its Python written now."""
    _LazyGraphModule.force_recompile(module)


def trace_fake(function: Callable[..., Any], examples: Sequence[Any]) -> fx.GraphModule:
    """The aten operators of ``function(*examples)``, on fake tensors."""
    sized = any(isinstance(tensor, Tensor) and is_sized_by_call(tensor) for tensor in examples)
    with _use_lazy_graph_module(True):
        mode: Literal["symbolic", "fake"] = "symbolic" if sized else "fake"
        return make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(*examples)
