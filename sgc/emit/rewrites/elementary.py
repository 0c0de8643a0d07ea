"""Lowers elementary functions to arithmetic that a compiler vectorises, on the CPU in float32.

Inductor calls a library (SLEEF) for ``tanh`` and ``log1p``, whose every step is in twice the precision: an element of
``tanh`` takes as long as four of ``exp``, and one of ``softplus`` as three. What is written here instead rounds each
step, and is off by at most three units in the last place, where the library is off by one (``tests`` bound both).
Everything else of them is torch's: signs of zeros, infinities, NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, is_static, replace, same_kind, tensor_of, value_of

_aten = torch.ops.aten

_MANY = 4096
"""The number of elements from which the gain is worth twenty more nodes to compile."""


def lower_elementary(module: fx.GraphModule) -> bool:
    """Lower every large enough call that has a rule.

    For backends that fuse pointwise operators: on others each step is a pass over memory.
    """
    changed = False
    for node in list(module.graph.nodes):
        own = tensor_of(node)
        if node.target not in _RULES or own is None or not is_static(own) or own.numel() < _MANY:
            continue
        operands = [value_of(operand) for operand in node.all_input_nodes]
        if not all(_is_single_on_cpu(value) for value in (own, *operands)):
            continue
        written = _RULES[node.target](node)
        if written is not None:
            assert same_kind(value_of(written), own), node  # torch lays out results of pointwise operators alike
            replace(node, written)
            changed = True
    return changed


def _is_single_on_cpu(value: Tensor) -> bool:
    return value.dtype is torch.float32 and value.device.type == "cpu"


# -- the rules


def _tanh(node: fx.Node) -> fx.Node:
    """Moshier's ``tanhf`` (Cephes): an odd polynomial near 0, ``1 - 2 / (exp(2 |x|) + 1)`` elsewhere."""
    at, (x,) = partial(call, node), node.args
    size = at(_aten.abs.default, x)
    square = at(_aten.mul.Tensor, size, size)
    near = at(_aten.mul.Tensor, at(_aten.mul.Tensor, _polynomial(at, square, _TANH), square), size)
    near = at(_aten.add.Tensor, near, size)
    grown = at(_aten.add.Scalar, at(_aten.exp.default, at(_aten.add.Tensor, size, size)), 1.0)
    far = at(_aten.rsub.Scalar, at(_aten.mul.Scalar, at(_aten.reciprocal.default, grown), 2.0), 1.0)
    chosen = at(_aten.where.self, at(_aten.lt.Scalar, size, 0.625), near, far)
    return at(_aten.copysign.Tensor, chosen, x)


def _softplus(node: fx.Node) -> fx.Node | None:
    """``max(x, 0) + log(1 + exp(-|x|))``, which is ``x`` where torch, above its threshold, takes ``x``."""
    at = partial(call, node)
    x, beta, threshold = _with_defaults(node, 1, 1, 20)
    if node.kwargs or beta != 1 or threshold < 18:  # exp(-18) is lost beside 18
        return None
    return at(_aten.add.Tensor, at(_aten.relu.default, x), _log_one_plus_exp(at, x))


def _cross_entropy(node: fx.Node) -> fx.Node | None:
    """``(1 - target) x - log sigmoid(x)`` as in torch; ``log sigmoid(x)`` is ``min(x, 0) - log(1 + exp(-|x|))``."""
    at = partial(call, node)
    x, target, weight, positive, reduction = _with_defaults(node, 2, None, None, 1)
    if node.kwargs or weight is not None or positive is not None or reduction != 0:
        return None
    absent = at(_aten.mul.Tensor, at(_aten.rsub.Scalar, target, 1.0), x)
    log_sigmoid = at(_aten.sub.Tensor, at(_aten.clamp_max.default, x, 0.0), _log_one_plus_exp(at, x))
    return at(_aten.sub.Tensor, absent, log_sigmoid)


def _with_defaults(node: fx.Node, operands: int, *defaults: Any) -> tuple[Any, ...]:
    """The arguments of a node: ``operands`` of them, and options that have these defaults."""
    return (*node.args, *defaults[len(node.args) - operands :])


_RULES: dict[object, Callable[[fx.Node], fx.Node | None]] = {
    _aten.tanh.default: _tanh,
    _aten.softplus.default: _softplus,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}


# -- what they share

_At = Callable[..., fx.Node]
"""Makes a node before the replaced one."""

_TANH = (-3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3)
"""``(tanh(x) / x - 1) / x**2`` for ``|x| < 0.625``, by powers of ``x**2``; from Cephes, ``single/tanhf.c``."""

_ATANH = (0.3333332017, 0.2000378032, 0.141183099, 0.1342574901)
"""``(atanh(s) / s - 1) / s**2`` for ``0 <= s <= 1/3``, by powers of ``s**2``: the polynomial through Chebyshev's four
points. With it ``atanh(s)`` is off by at most 1.6e-8 of its value, an eighth of a unit in the last place."""


def _log_one_plus_exp(at: _At, x: object) -> fx.Node:
    """``log(1 + u)`` of ``u = exp(-|x|)``, which is at most 1: ``2 atanh(s)`` with ``s = u / (2 + u)``."""
    u = at(_aten.exp.default, at(_aten.neg.default, at(_aten.abs.default, x)))
    s = at(_aten.div.Tensor, u, at(_aten.add.Scalar, u, 2.0))
    square = at(_aten.mul.Tensor, s, s)
    correction = at(_aten.mul.Tensor, at(_aten.mul.Tensor, _polynomial(at, square, _ATANH), square), s)
    return at(_aten.mul.Scalar, at(_aten.add.Tensor, correction, s), 2.0)


def _polynomial(at: _At, x: fx.Node, coefficients: Sequence[float]) -> fx.Node:
    """A polynomial by Horner's rule, given the coefficient of each power from 0 on."""
    *rest, second, first = coefficients
    start = at(_aten.add.Scalar, at(_aten.mul.Scalar, x, first), second)
    return reduce(lambda y, c: at(_aten.add.Scalar, at(_aten.mul.Tensor, y, x), c), reversed(rest), start)
