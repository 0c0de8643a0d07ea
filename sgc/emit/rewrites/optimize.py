"""The rewrites of an emitted module in their order, fx to fx, between differentiation and the backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from textwrap import dedent

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from sgc.config import Rng
from sgc.emit.fx.module_laws import check, devices
from sgc.emit.fx.rewriting import copy_of, depends_on_data, is_functional, results_of, takes_any_size
from sgc.emit.rewrites.batching.batch import batch_small_operators
from sgc.emit.rewrites.broadcast_late import compute_once
from sgc.emit.rewrites.cse import merge_common_subexpressions
from sgc.emit.rewrites.dead_nodes import drop_dead_nodes
from sgc.emit.rewrites.elementary import lower_elementary
from sgc.emit.rewrites.flat_diagonals import take_diagonals
from sgc.emit.rewrites.fold_constants import fold_constants
from sgc.emit.rewrites.functionalise import functionalise
from sgc.emit.rewrites.identities import remove_identities
from sgc.emit.rewrites.matrix_products import lay_out_products
from sgc.emit.rewrites.merge_constants import merge_constants
from sgc.emit.rewrites.merge_draws import merge_draws
from sgc.emit.rewrites.merge_sums import merge_sums
from sgc.emit.rewrites.outline import Outlined, outline, settle
from sgc.emit.rewrites.samplers import lower_samplers
from sgc.errors import ArgumentError
from sgc.table import Table

Pass = Callable[[fx.GraphModule, Rng], bool]
"""Rewrites a module in place, and says whether it changed it."""

PASSES: dict[str, Pass] = {
    "functionalise": lambda module, rng: functionalise(module),  # no write but copies into inputs, at the end
    "lower_samplers": lower_samplers,  # draws as uniform or normal numbers and arithmetic
    "fold_constants": lambda module, rng: fold_constants(module),  # what depends on literals alone is computed now
    "merge_constants": lambda module, rng: merge_constants(module),  # equal literals become one
    "remove_identities": lambda module, rng: remove_identities(module),  # x * 1, -(-x), views of all there is
    "take_diagonals": lambda module, rng: take_diagonals(module),  # each (n + 1)th number of n by n is a diagonal
    "merge_common_subexpressions": lambda module, rng: merge_common_subexpressions(module),  # once is enough
    "merge_sums": lambda module, rng: merge_sums(module),  # a sum of sums is one sum
    "drop_dead_nodes": drop_dead_nodes,  # what nothing uses
    "batch_small_operators": batch_small_operators,  # many of one kind as one, on stacked operands
    "merge_draws": merge_draws,  # small sets of random numbers as one
    "lower_elementary": lambda module, rng: lower_elementary(module),  # tanh and such as vectorised arithmetic
    "lay_out_products": lambda module, rng: lay_out_products(module),  # matrix products as BLAS likes them
    "compute_once": lambda module, rng: compute_once(module),  # a costly operand of many elements gets memory
}

_OUTLINED_BEFORE = "batch_small_operators"
"""The pass before which an update is taken out of a module: what it leaves behind may be batched."""

_AFTER_BATCHING = ("merge_constants", "remove_identities", "merge_common_subexpressions", "drop_dead_nodes")
"""Passes that run once more where operators were batched: that leaves views behind, and copies of literals."""


_FOR_COMPILERS = ("lower_elementary", "lay_out_products", "compute_once")
"""Passes, the last ones, that are of use where pointwise operators are fused; elsewhere what they write is slower."""

_ANY_SIZES = ("functionalise", "drop_dead_nodes")
"""Passes that ask for no sizes; the others need to know them."""

_ANY_SIZES_OF_CALLS = ("fold_constants", "merge_constants", "remove_identities", "merge_common_subexpressions")
"""Passes that leave alone whatever has a size that differs from call to call."""


@dataclass(frozen=True)
class Record:
    """What one pass did: the nodes of the graph before and after it; ``skipped`` says why it was not run, if so."""

    name: str
    changed: bool
    before: int
    after: int
    skipped: str = ""


@dataclass(frozen=True)
class Report:
    """What each pass did, in order; prints as a table."""

    records: tuple[Record, ...] = ()

    def __str__(self) -> str:
        return dedent("\n".join(self.table("").lines()))

    def table(self, title: str) -> Table:
        """The passes, with the numbers of nodes before and after each."""
        if not self.records:
            return Table(title, (), (("the module runs as it was traced; nothing was rewritten",),))
        rows = (
            (
                record.name,
                str(record.before),
                str(record.after),
                record.skipped or ("" if record.changed else "unchanged"),
            )
            for record in self.records
        )
        return Table(title, ("pass", "before", "after", ""), tuple(rows), frozenset({1, 2}))


@dataclass(frozen=True)
class Optimized:
    """The rewritten module, and what each pass did.

    If an update was taken out of it, ``outlined`` is the module in two parts, and ``module`` is that from which they
    were made; the later passes have rewritten the rest alone. ``plain`` is what is compiled, the module or the rest,
    without the passes that are for compilers alone: to be run until it is compiled. ``gpu`` is where it will be
    replayed as a CUDA graph.
    """

    module: fx.GraphModule
    report: Report
    outlined: Outlined | None = None
    plain: fx.GraphModule | None = None
    gpu: torch.device | None = None


def optimize(
    module: fx.GraphModule,
    examples: Sequence[Tensor],
    *,
    rng: Rng = "torch",
    skip: Collection[str] = (),
    updated: Collection[int] = (),
    keep_plain: bool = False,
) -> Optimized:
    """Rewrite a module of aten operators; the module given stays as it is.

    The result computes the same values, writes the same values into its inputs, and with ``rng="torch"`` draws the same
    random numbers in the same order. With ``rng="fast"`` draws may be replaced by others of the same law, and a draw
    that nothing uses goes.

    :param module: a graph of aten operators, in-place ones too, as ``make_fx`` makes it.
    :param examples: tensors like the inputs; needed for their shapes if the nodes have no ``meta["val"]``.
    :param skip: names of passes to leave out. Without ``functionalise``, a graph that writes into tensors only
        loses its dead nodes: the other passes need a functional one.
    :param updated: the positions of inputs that the module writes, and whose update may be taken out of it.
    :param keep_plain: whether the result is to have a ``plain`` module.
    :raises sgc.errors.ArgumentError: if ``skip`` names no pass.
    :raises sgc.errors.ModuleError: if a module breaks a law before or after a pass.
    """
    unknown = [name for name in skip if name not in PASSES]
    if unknown:
        raise ArgumentError(f"there is no pass {', '.join(unknown)}", remedy=f"the passes are {', '.join(PASSES)}")
    module = copy_of(module)
    if any(node.users and "val" not in node.meta for node in module.graph.nodes):
        FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*examples)
    check(module, functional=False)
    allowed = devices(module)
    runs = _passes_of(module)
    records: list[Record] = []
    whole, outlined, plain = module, None, None
    for name in PASSES:
        if keep_plain and name == _FOR_COMPILERS[0]:
            plain = copy_of(module)
        if name == _OUTLINED_BEFORE and updated and name in runs and is_functional(module.graph):
            outlined = outline(module, updated, with_update=keep_plain)
            before, module = len(whole.graph.nodes), whole if outlined is None else outlined.rest
            records.append(Record("outline", outlined is not None, before, len(module.graph.nodes)))
        records.append(_run(name, module, rng, skip, allowed, runs))
        if name == "batch_small_operators" and records[-1].changed:
            for again in _AFTER_BATCHING:
                records.append(_run(again, module, rng, skip, allowed, runs))
    report = Report(tuple(records))
    if outlined is None:
        return Optimized(copy_of(module), report, plain=plain)
    own = len(results_of(whole))
    if plain is not None:
        plain = settle(replace(outlined, rest=plain), own).rest
    return Optimized(whole, report, settle(replace(outlined, rest=module), own), plain)


def _passes_of(module: fx.GraphModule) -> Collection[str]:
    """The passes that can rewrite a module."""
    if not depends_on_data(module.graph):
        return tuple(PASSES)
    return (*_ANY_SIZES, *_ANY_SIZES_OF_CALLS) if takes_any_size(module) else _ANY_SIZES


def _run(
    name: str,
    module: fx.GraphModule,
    rng: Rng,
    skip: Collection[str],
    allowed: Collection[torch.device],
    runs: Collection[str],
) -> Record:
    before = len(module.graph.nodes)
    functional = is_functional(module.graph)
    skipped = ""
    if name in skip:
        skipped = "skipped"
    elif name not in runs:
        skipped = "skipped: sizes are not numbers"
    elif not functional and name not in _ANY_SIZES:
        skipped = "skipped: the graph writes into tensors"
    changed = not skipped and PASSES[name](module, rng)
    if changed:
        check(module, functional=functional or name == "functionalise", allowed=allowed)
    return Record(name, changed, before, len(module.graph.nodes), skipped)
