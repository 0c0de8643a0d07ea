"""Rewrites samplers for ``rng="fast"``: the same law from other random numbers, in operators that fuse.

``bernoulli(p)`` draws one number at a time; ``rand(shape) < p`` draws them vectorised, and the comparison fuses
with what follows. The two agree in law exactly as far as ``rand`` is uniform on a grid of spacing 2**-24 (float32)
or 2**-53 (float64).
"""

from __future__ import annotations

import torch
from torch import fx


def lower_samplers(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the module with its Bernoulli draws lowered; the module itself if it has none."""
    draws = torch.ops.aten.bernoulli.default
    if not any(node.target is draws and not node.kwargs for node in module.graph.nodes):
        return module
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    for node in [copy for original, copy in copies.items() if original.target is draws and not original.kwargs]:
        value = node.meta["val"]
        with graph.inserting_before(node):
            uniform = graph.call_function(
                torch.ops.aten.rand.default,
                (list(value.shape),),
                {"dtype": value.dtype, "device": value.device, "pin_memory": False},
            )
            below = graph.call_function(torch.ops.aten.lt.Tensor, (uniform, node.args[0]))
            drawn = graph.call_function(torch.ops.prims.convert_element_type.default, (below, value.dtype))
        node.replace_all_uses_with(drawn)
        graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(module, graph)
