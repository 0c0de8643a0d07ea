"""Draws many small sets of standard numbers as one.

A call of torch's generator on the CPU takes a microsecond or two, however few the numbers: as long as all the
arithmetic on them. A guide with a site for each variable makes as many calls.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import fx

from sgc.config import Rng
from sgc.emit.fx.rewriting import call, exposed, is_static, replace, tensor_of, value_of

_aten = torch.ops.aten

_STANDARD = {_aten.rand.default, _aten.randn.default}

_LARGEST = 4096
"""The size of a draw from which the cost of a separate call is small."""


def merge_draws(module: fx.GraphModule, rng: Rng) -> bool:
    """Merge small uniform or standard normal draws of one dtype into one, on the CPU with ``rng="fast"``.

    Their joint law stays; the numbers are others. On a GPU draws fuse with what uses them.
    """
    if rng != "fast":
        return False
    alike: dict[object, list[fx.Node]] = defaultdict(list)
    seen_outside = exposed(module.graph)
    for node in module.graph.nodes:
        drawn = tensor_of(node) if node.target in _STANDARD else None
        if drawn is None or drawn.device.type != "cpu" or not is_static(drawn) or node in seen_outside:
            continue
        if 0 < drawn.numel() <= _LARGEST:
            alike[node.target, drawn.dtype].append(node)
    groups = [draws for draws in alike.values() if len(draws) > 1]
    for draws in groups:
        _merge(draws)
    return bool(groups)


def _merge(draws: list[fx.Node]) -> None:
    values = [value_of(node) for node in draws]
    first, total = draws[0], sum(value.numel() for value in values)
    whole = call(first, first.target, [total], **first.kwargs)  # type: ignore[arg-type]
    start = 0
    for node, value in zip(draws, values, strict=True):
        piece = call(node, _aten.slice.Tensor, whole, 0, start, start + value.numel())
        replace(node, call(node, _aten.view.default, piece, list(value.shape)))
        start += value.numel()
