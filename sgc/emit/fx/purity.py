"""Which operators compute a value from their arguments and do nothing else.

Two equal calls of such an operator may be merged, and a call on constants may be done at compile time. The list is
one of permission, derived from what torch declares: an aten or prims operator that writes into nothing, draws nothing
and reads no value into Python, and that is tagged pointwise, reduction or core, or returns a view. Some plain
operators carry none of these tags and are named here. An operator that is not known to be pure is left alone.
"""

from __future__ import annotations

import operator
from functools import cache

import torch
from torch import fx

_EXCLUDED_TAGS = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.data_dependent_output,
    torch.Tag.inplace_view,
    torch.Tag.maybe_aliasing_or_mutating,
}
_GRANTING_TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.core}
_GRANTED = frozenset(
    (
        *("ones", "zeros", "ones_like", "zeros_like", "new_ones", "new_zeros", "new_full", "eye", "arange", "linspace"),
        *("stack", "tril", "triu", "diag_embed", "cumprod", "take", "index_add", "dot", "mv", "unsafe_split"),
        *("_unsafe_view", "binary_cross_entropy_with_logits", "log_sigmoid_forward", "log_sigmoid_backward"),
        *("softplus_backward", "select_backward", "slice_backward", "diagonal_backward", "_softmax_backward_data"),
        *("_log_softmax_backward_data", "_dirichlet_grad", "_standard_gamma_grad", "linalg_cholesky_ex"),
        *("linalg_solve_triangular", "cholesky_solve", "cholesky_inverse", "linalg_lu_solve", "_linalg_slogdet"),
        *("_linalg_svd",),
    )
)


def is_pure(node: fx.Node) -> bool:
    """Whether the node's value depends on its arguments alone and computing it has no other effect."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and _is_pure_operator(node.target)


def is_view(node: fx.Node) -> bool:
    """Whether the node's value shares the memory of its first argument."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and _is_view_operator(node.target)


@cache
def _is_view_operator(target: torch._ops.OpOverload) -> bool:
    returns = target._schema.returns
    return not target._schema.is_mutable and any(value.alias_info is not None for value in returns)


@cache
def _is_pure_operator(target: torch._ops.OpOverload) -> bool:
    tags = set(target.tags)
    name = target._schema.name.partition("::")[2]
    if target.namespace not in ("aten", "prims") or target._schema.is_mutable or tags & _EXCLUDED_TAGS:
        return False
    if "empty" in name or name == "sym_size":
        return False  # what is in fresh memory is no value
    return bool(tags & _GRANTING_TAGS) or _is_view_operator(target) or name in _GRANTED
