"""A decaying average with a row for each datum: a subsampled plate reads and moves on the rows that it has.

The average of :mod:`sgc.passes.baselines.learned_and_average` has an element for each element of a plate, so that in a
subsampled plate it mixes the costs of whatever data were drawn there. With an index i of the subsample's rows, N data
and B elements of the plate, of the downstream cost R and the average a:

    b = (N / B) a[i],    then    a[i] = (1 - beta) (B / N) R + beta a[i]

Of a row that the subsample has twice, the first one moves it on. What is kept is the cost without the factor N / B by
which the plate scales it, so that it fits batches of all sizes; for several plates that is the product of their
factors. It is a control variate of its own for each datum (Mnih and Gregor 2014, "Neural Variational Inference and
Learning in Belief Networks", section 2.3.1, have a network of the datum for that): b is known before the samples of the
step are drawn, given the rows, so that the gradient stays unbiased.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from sgc.errors import BaselineError
from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, SiteNode
from sgc.graph.program import PlateRows
from sgc.graph.sizes import Size


@dataclass(frozen=True)
class AveragePerDatumNode(BaselineNode):
    """A baseline whose average has all rows of the data in the dims of some plates, with what was learned, if any."""

    rows: tuple[PlateRows, ...] = ()

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """That of the rows of a run: the downstream cost lacks plates on the left that have one element."""
        return (1,) * (-min(rows.dim for rows in self.rows) - len(self.shape)) + self.shape

    @property
    def average_shape(self) -> tuple[int, ...]:
        shape = list(self.rows_shape)
        for rows in self.rows:
            shape[rows.dim] = rows.full_size
        return tuple(shape)

    def computed_from(self) -> tuple[str, ...]:
        return (*super().computed_from(), *(keys.plate_rows(self.site, rows.plate) for rows in self.rows))

    def moved_average(self, run: Arithmetic) -> Value:
        """The rows of this run as they are, before they move on."""
        average, index, scale = run.average(self.key), self._index(run), self._scale(run)
        cost = run.call(torch.detach, run.value(keys.downstream(self.site)))
        lacking = len(self.rows_shape) - len(self.shape)
        for _ in range(lacking):
            cost = run.call(torch.unsqueeze, cost, 0, name="rows")
        kept = run.call(torch.ops.aten.index.Tensor, average, index, name="rows")
        fresh = run.call(torch.mul, run.call(torch.div, cost, scale, name="rows"), 1 - self.beta, name="rows")
        moved = run.call(torch.add, fresh, run.call(torch.mul, kept, self.beta, name="rows"), name="rows")
        for rows in self.rows:
            if not rows.distinct:
                first = self._first_of_each(run, rows)
                moved = run.call(torch.index_select, moved, rows.dim, first, name="rows")
        moved = run.call(torch.ops.aten.to.dtype, moved, self.dtype, name="rows")
        run.call(torch.ops.aten.index_put_.default, average, index, moved, name="update")
        for _ in range(lacking):
            kept = run.call(torch.squeeze, kept, 0, name="rows")
        return run.call(torch.mul, kept, scale, name="average")

    def _index(self, run: Arithmetic) -> list[Value | None]:
        """The index of the rows: an entry for each dim of the average, none for those to the right of all plates.

        Dims between two plates have numbers, too, so that the dims of what is indexed stay in their order.
        """
        by_dim = {rows.dim: rows for rows in self.rows}
        first, last = min(by_dim), max(by_dim)
        index: list[Value | None] = [None] * (len(self.rows_shape) + first)
        for dim in range(first, last + 1):
            if dim in by_dim:
                numbers = run.value(keys.plate_rows(self.site, by_dim[dim].plate))
            else:
                numbers = run.call(torch.arange, self.rows_shape[dim], device=self.device, name="index")
            index.append(run.call(torch.reshape, numbers, (-1, *[1] * (last - dim)), name="index"))
        return index

    def _scale(self, run: Arithmetic) -> float | Value:
        """The product of N / B over the plates."""
        sizes = {rows: self.rows_shape[rows.dim] for rows in self.rows}
        scale: float | Value = math.prod(
            rows.full_size / size for rows, size in sizes.items() if not isinstance(size, Size)
        )
        for rows in (rows for rows, size in sizes.items() if isinstance(size, Size)):
            numbers = run.value(keys.plate_rows(self.site, rows.plate))
            size = run.call(torch.ops.aten.sym_size.int, numbers, 0, name="size")
            scale = run.call(
                operator.truediv, run.call(operator.mul, scale, rows.full_size, name="scale"), size, name="scale"
            )
        return scale

    def _first_of_each(self, run: Arithmetic, rows: PlateRows) -> Value:
        """For each element of a plate the first one with the same row."""
        numbers = run.value(keys.plate_rows(self.site, rows.plate))
        order = run.call(torch.argsort, numbers, stable=True, name="order")
        ordered = run.call(torch.index_select, numbers, 0, order, name="order")
        place = run.call(torch.searchsorted, ordered, numbers, name="order")
        return run.call(torch.index_select, order, 0, place, name="first")

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """The rows do not depend on a sample, and are one for each element of the plate."""
        for rows in self.rows:
            key = keys.plate_rows(self.site, rows.plate)
            if key not in graph:
                yield f"{self.key!r} does not know the rows of the plate {rows.plate!r}"
            elif graph.provenance(key):
                yield f"{key!r} depends on {sorted(graph.provenance(key))}"
            elif graph.payload(key).shape != (self.rows_shape[rows.dim],):
                yield f"{self.key!r} has not an element for each of {key!r}"

    def words(self) -> str:
        each = " x ".join(f"{rows.full_size} rows of '{rows.plate}'" for rows in self.rows)
        return f"decaying average for each of {each} (beta {self.beta})"


def with_rows(graph: StochasticGraph, node: BaselineNode, rows: tuple[PlateRows, ...]) -> AveragePerDatumNode:
    """A baseline with an average, so that this has a row for each datum.

    :raises BaselineError: if the rows depend on a sample.
    """
    site = graph.payload(node.site)
    assert isinstance(site, SiteNode)
    for each in rows:
        samples = sorted(graph.provenance(keys.plate_rows(node.site, each.plate)))
        if samples:
            raise BaselineError(
                f"average_per_datum: which rows the plate '{each.plate}' has depends on the sample of "
                f"{', '.join(map(repr, samples))}",
                site=node.site,
                source=site.source,
                remedy="let the subsample not depend on a sample, or leave average_per_datum out",
            )
    own = {field.name: getattr(node, field.name) for field in fields(node)}
    return AveragePerDatumNode(**own, rows=rows)
