"""Matrices without a factor or inverse: NaN instead of an error.

torch's ``cholesky``, ``inv`` and ``solve`` check what they have computed, and raise. Traced, that check
is an operator of its own, which gives nothing: a graph in which it has no effect goes on with numbers that mean
nothing. A program that is checked says that it was not valid, and Pyro raises torch's error; where nothing raises, the
numbers are NaN.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.rewriting import call, results_of, value_of

_aten = torch.ops.aten


def failures_are_nan(module: fx.GraphModule, *, validates: bool) -> None:
    """Replace error checks of factorisations by NaN results where they fail.

    :param validates: whether the last result of the module says that a call was valid: then this is part of it.
    """
    graph = module.graph
    checks = graph.find_nodes(op="call_function", target=_aten._linalg_check_errors.default)
    outcomes: dict[fx.Node, fx.Node] = {}  # two factors of one matrix may be one by now, checked twice
    for check in checks:
        info: Any = check.args[0]
        if info not in outcomes:
            outcomes[info] = _nan_unless_computed(info, check)
        succeeded = outcomes[info]
        if validates:
            output = graph.output_node()
            *results, valid = results_of(module)
            holds = call(output, _aten.logical_and.default, valid, call(output, _aten.all.default, succeeded))
            output.args = ([*results, holds],)
        graph.erase_node(check)
    if checks:
        graph.lint()
        module.recompile()


def _nan_unless_computed(info: fx.Node, check: fx.Node) -> fx.Node:
    """A node: whether the factorisation succeeded, by its ``info``. Its results are NaN if not."""
    if info.target is not operator.getitem:  # a literal by now: what was computed of literals, when the graph was made
        return call(check, _aten.eq.Scalar, info, 0)
    computed: Any = info.args[0]
    results = [user for user in computed.users if user.target is operator.getitem]
    for result in results:
        computed.append(result)  # readers may have been moved ahead of the check
    behind = results[0].next
    succeeded = call(behind, _aten.eq.Scalar, info, 0)
    for result in results:
        if result.users and value_of(result).is_floating_point():
            _nan_unless(succeeded, result, behind)
    return succeeded


def _nan_unless(succeeded: fx.Node, result: fx.Node, behind: fx.Node) -> None:
    users = list(result.users)
    condition = succeeded
    for _ in range(value_of(result).dim() - value_of(succeeded).dim()):
        condition = call(behind, _aten.unsqueeze.default, condition, -1)
    chosen = call(behind, _aten.where.ScalarOther, condition, result, torch.nan)
    for user in users:
        user.replace_input_with(result, chosen)
