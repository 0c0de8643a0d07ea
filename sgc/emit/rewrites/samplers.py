"""Rewrites draws as uniform or standard normal numbers and arithmetic that fuses with what follows.

Some rules give the very numbers that the operator gives, under one seed: they always apply. The others keep the law
and draw other numbers; they need ``rng="fast"``. Their law is exact as far as the uniform numbers are: those of
float32 lie on a grid of spacing 2**-24, those of float64 on one of 2**-53. They do not check their arguments: where
torch would raise for a probability that is negative or NaN, the draw has no meaning, and the density at it is NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.fx.rewriting import call, is_functional, is_static, lineage, replace, tensor_of, value_of

_aten = torch.ops.aten
_convert = torch.ops.prims.convert_element_type.default


def lower_samplers(module: fx.GraphModule, rng: Rng) -> bool:
    """Lower every draw that a rule is known for."""
    if not is_functional(module.graph):
        return False
    changed = False
    for node in list(module.graph.nodes):
        own = tensor_of(node)
        if own is None or not is_static(own) or node.kwargs.get("generator") is not None:
            continue
        drawn = _same_numbers(node, own)
        if drawn is None and rng == "fast" and node.target in _SAME_LAW:
            drawn = _SAME_LAW[node.target](node, own)
        if drawn is not None:
            replace(node, drawn)
            changed = True
    return changed


# -- the same numbers


def _same_numbers(node: fx.Node, own: Tensor) -> fx.Node | None:
    """A standard draw into memory that was made for it: ``randn`` and ``rand`` do the same without the memory."""
    parameters = _parameters(node)
    if parameters == (0.0, 1.0) and own.is_contiguous() and node.target in _STANDARD:
        return _draw(node, _STANDARD[node.target], own)
    return None


_STANDARD = {_aten.normal_functional.default: _aten.randn.default, _aten.uniform.default: _aten.rand.default}


def _parameters(node: fx.Node) -> tuple[Any, ...]:
    """Mean and standard deviation, or the two ends; torch's defaults are 0 and 1 for both."""
    names = ("mean", "std") if node.target is _aten.normal_functional.default else ("from", "to")
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    return tuple(given.get(name, default) for name, default in zip(names, (0.0, 1.0), strict=True))


def _draw(node: fx.Node, target: Callable[..., Any], own: Tensor, dtype: torch.dtype | None = None) -> fx.Node:
    return call(node, target, list(own.shape), dtype=dtype or own.dtype, device=own.device, pin_memory=False)


# -- the same law


def _bernoulli(node: fx.Node, own: Tensor) -> fx.Node:
    """1 where a uniform number of [0, 1) is below p, which for p = 0 is never and for p = 1 always."""
    probability = node.args[-1]  # bernoulli(p), or bernoulli(like, p)
    compare = _aten.lt.Tensor if isinstance(probability, fx.Node) else _aten.lt.Scalar
    wide = torch.float64 if own.dtype is torch.float64 else torch.float32  # as torch: those of bfloat16 are 256 numbers
    uniform = _draw(node, _aten.rand.default, own, wide)
    return call(node, _convert, call(node, compare, uniform, probability), own.dtype)


def _bernoulli_p(node: fx.Node, own: Tensor) -> fx.Node | None:
    return _bernoulli(node, own) if len(node.args) == 2 else None


def _affine(node: fx.Node, own: Tensor) -> fx.Node:
    """A normal or uniform draw of other parameters: the standard one, scaled and shifted as torch does it."""
    low, high = _parameters(node)
    normal = node.target is _aten.normal_functional.default
    standard = _draw(node, _aten.randn.default if normal else _aten.rand.default, own)
    scaled = call(node, _aten.mul.Scalar, standard, high if normal else high - low)
    return call(node, _aten.add.Scalar, scaled, low)


def _normal(node: fx.Node, own: Tensor) -> fx.Node | None:
    if len(node.args) < 2:
        return None
    mean, deviation = node.args[:2]
    scaled = call(node, _aten.mul.Tensor, _draw(node, _aten.randn.default, own), deviation)
    return call(node, _aten.add.Tensor, scaled, mean)


def _categorical(node: fx.Node, own: Tensor) -> fx.Node | None:
    """``multinomial`` with replacement, by inversion: the first category whose cumulative weight exceeds u * total.

    A category of weight zero is passed over, whatever the rounding of the cumulative sums and of the product. float64
    throughout: weights far below 2**-24 of the total keep their law.
    """
    weights, count = node.args[:2]
    replacement = node.args[2] if len(node.args) > 2 else node.kwargs.get("replacement", False)
    given = tensor_of(weights)
    if given is None or not is_static(given) or not given.shape[-1] or not (replacement or count == 1):
        return None
    assert isinstance(weights, fx.Node)
    wide = call(node, _convert, _in_proportion(node, weights), torch.float64)
    uniform = _draw(node, _aten.rand.default, own, torch.float64)
    return (_of_few if given.shape[-1] <= _FEW else _of_many)(node, wide, uniform)


_FEW = 16
"""With more categories, arithmetic on each takes longer than a call of ``cumsum``."""


def _of_few(node: fx.Node, weights: fx.Node, uniform: fx.Node) -> fx.Node:
    """How many categories stand before the one that is drawn, by arithmetic that fuses.

    Sums of one weight after another do not fall, and those from the last positive weight on are equal to the total.
    """
    places = range(value_of(weights).shape[-1])
    columns = [call(node, _aten.slice.Tensor, weights, -1, place, place + 1) for place in places]
    sums = list(itertools.accumulate(columns, lambda total, column: call(node, _aten.add.Tensor, total, column)))
    target = call(node, _aten.mul.Tensor, uniform, sums[-1])
    index = call(node, _aten.full_like.default, uniform, 0, dtype=torch.int64)
    for cumulative in sums[:-1]:
        passed = call(node, _aten.le.Tensor, cumulative, target)
        within = call(node, _aten.lt.Tensor, cumulative, sums[-1])
        index = call(node, _aten.add.Tensor, index, call(node, _aten.bitwise_and.Tensor, passed, within))
    return index


def _of_many(node: fx.Node, weights: fx.Node, uniform: fx.Node) -> fx.Node:
    """Rounded sums of a scan may decrease: if none exceeds the product, draw the last category of positive weight."""
    categories, device = value_of(weights).shape[-1], value_of(weights).device
    index = call(node, _aten.arange.start_step, 0, categories, 1, dtype=torch.int64, device=device, pin_memory=False)
    cumulative = call(node, _aten.cumsum.default, weights, -1)
    total = call(node, _aten.slice.Tensor, cumulative, -1, categories - 1, categories)
    target = call(node, _aten.unsqueeze.default, call(node, _aten.mul.Tensor, uniform, total), -1)
    positive = call(node, _aten.gt.Scalar, weights, 0)
    zero = call(node, _aten.full.default, [], 0, dtype=torch.int64, device=device, pin_memory=False)
    last = call(node, _aten.amax.default, call(node, _aten.where.self, positive, index, zero), [-1], True)
    exceeds = call(node, _aten.gt.Tensor, call(node, _aten.unsqueeze.default, cumulative, -2), target)
    fits = call(node, _aten.bitwise_and.Tensor, exceeds, call(node, _aten.unsqueeze.default, positive, -2))
    candidates = call(node, _aten.where.self, fits, index, call(node, _aten.unsqueeze.default, last, -1))
    return call(node, _aten.amin.default, candidates, [-1])


def _in_proportion(node: fx.Node, weights: fx.Node) -> fx.Node:
    """Weights in the proportion of these; of probabilities that a softmax gives to this draw alone, simpler ones."""
    views = list(itertools.takewhile(lambda step: step.target in _KEEPS_ROWS, lineage(weights)))
    source = views[-1].args[0] if views else weights
    assert isinstance(source, fx.Node)
    own = value_of(source)
    if source.target is not _aten._softmax.default or any(len(step.users) > 1 for step in [*views, source]):
        return weights
    logits, dim, _ = source.args
    assert isinstance(logits, fx.Node) and isinstance(dim, int)
    lasting = [value_of(step).shape[-1:] == own.shape[-1:] for step in views]
    if dim not in (-1, own.dim() - 1) or not all(lasting):
        return weights
    if value_of(logits).dtype is not own.dtype or own.dtype not in (torch.float32, torch.float64):
        return weights  # of half precision a softmax computes in float32
    if not _are_normalised(logits):
        logits = call(node, _aten.sub.Tensor, logits, call(node, _aten.amax.default, logits, [-1], True))
    weights = call(node, _aten.exp.default, logits)
    for step in reversed(views):
        # The logits may be laid out otherwise than the softmax was, so that no view of them has this shape.
        reshape: Any = _aten.reshape.default if step.target is _aten.view.default else step.target
        weights = call(node, reshape, weights, *step.args[1:], **step.kwargs)
    return weights


_KEEPS_ROWS = frozenset({_aten.view.default, _aten.expand.default, _aten.detach.default})
"""Views that keep the order of the elements; where they keep the last dimension too, they keep its rows."""


def _are_normalised(logits: fx.Node) -> bool:
    """Whether the logarithms were normalised along the last dimension, as Pyro's ``Categorical`` does it."""
    while logits.target is _aten.expand.default:
        operand = logits.args[0]
        assert isinstance(operand, fx.Node)
        if value_of(operand).shape[-1:] != value_of(logits).shape[-1:]:
            return False
        logits = operand
    if logits.target is not _aten.sub.Tensor or logits.kwargs:
        return False
    given, total = logits.args
    return isinstance(total, fx.Node) and total.target is _aten.logsumexp.default and total.args == (given, [-1], True)


_SAME_LAW: dict[Any, Callable[[fx.Node, Tensor], fx.Node | None]] = {
    _aten.bernoulli.default: _bernoulli,
    _aten.bernoulli.p: _bernoulli_p,
    _aten.normal_functional.default: _affine,
    _aten.uniform.default: _affine,
    _aten.normal.Tensor_Tensor: _normal,
    _aten.multinomial.default: _categorical,
}
