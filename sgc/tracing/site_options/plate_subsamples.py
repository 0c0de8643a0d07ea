"""Which rows of its data a plate around a sample statement has: its subsample, drawn or given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor, fx

from sgc.errors import BaselineError, SourceLine
from sgc.tracing import tracer
from sgc.tracing.site_options.baseline_options import PER_DATUM
from sgc.tracing.source import current_line

SUBSAMPLES = "_subsamples"
"""In the ``infer`` of a site: the subsamples of the plates around it, by the names of these, and the site's line."""


@dataclass(frozen=True)
class PlateSubsample:
    """The subsample of a vectorised plate around a site, as the plate has it: a tensor, or a list of numbers.

    ``dim`` is negative; ``size`` is how many rows the subsample has, ``full_size`` how many there are.
    """

    plate: str
    dim: int
    size: int
    full_size: int
    given: Any


def subsamples_around(msg: Any) -> dict[str, Any]:
    """The subsamples of the plates around a statement that is being run, also of those made before the program ran.

    They stand in the stack of handlers; a frame of ``cond_indep_stack`` does not have them.
    """
    plates = {plate.name: plate for plate in runtime._PYRO_STACK if isinstance(plate, SubsampleMessenger)}
    around = [plates[frame.name] for frame in msg["cond_indep_stack"] if frame.name in plates]
    return {plate.name: plate._indices for plate in around if plate._indices is not None}


class NotedSubsamples(Messenger):
    """Wraps a guide; the sites with the option get the subsamples around them in their ``infer``."""

    def _pyro_sample(self, msg: Any) -> None:  # before a trace around it takes what is there
        baseline = (msg["infer"] or {}).get("baseline")
        if isinstance(baseline, Mapping) and PER_DATUM in baseline and not msg["is_observed"]:
            msg["infer"] = {**msg["infer"], SUBSAMPLES: (subsamples_around(msg), current_line())}


def asks_per_datum(infer: Mapping[str, Any] | None) -> bool:
    """Whether a statement asks for an average for each datum."""
    baseline = (infer or {}).get("baseline")
    return isinstance(baseline, Mapping) and baseline.get(PER_DATUM) is True


def plates_with_rows(site: Any, subsamples: Mapping[str, Any], source: SourceLine | None) -> Iterator[PlateSubsample]:
    """The vectorised plates around a site of a trace that have subsamples, of two data or more.

    :raises BaselineError: if there is a sequential plate over a subsample, or how many rows a plate has is not known.
    """

    def error(problem: str, remedy: str) -> BaselineError:
        return BaselineError(f"{PER_DATUM}: {problem}", site=site["name"], source=source, remedy=remedy)

    for frame in site["cond_indep_stack"]:
        if isinstance(frame.full_size, Tensor):
            raise error(
                f"the plate '{frame.name}' has a tensor for its size, and the average has a row for each datum",
                "give the size of the plate as a number",
            )
        if not frame.vectorized and frame.full_size is not None and frame.size != frame.full_size:
            raise error(
                f"the plate '{frame.name}' is a loop over a subsample of its data, each element with a site of its own",
                f"write `with pyro.plate(...)` in the place of the loop, or leave {PER_DATUM} out",
            )
        if frame.vectorized and frame.name in subsamples:
            if frame.full_size == 1:  # there is one row, and costs may lack its dim
                continue
            yield PlateSubsample(frame.name, frame.dim, frame.size, frame.full_size, subsamples[frame.name])
        elif frame.vectorized and frame.full_size not in (None, frame.size):
            raise error(
                f"which rows the plate '{frame.name}' has is not known: its handler does not stand around the site",
                "make the plate by pyro.plate, within the guide",
            )


def rows_of(subsample: PlateSubsample, device: torch.device, error: Callable[[str, str], BaselineError]) -> Tensor:
    """The rows of a subsample as a tensor of whole numbers, those that count from the end from the beginning.

    They may be out of range (:func:`are_rows`).

    :raises BaselineError: if it is another kind of index.
    """
    given = subsample.given
    rows = given if isinstance(given, Tensor) else torch.as_tensor(given)
    if rows.dim() != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype is torch.bool:
        shown = f"{str(rows.dtype).removeprefix('torch.')}{list(rows.shape)}"
        raise error(
            f"{PER_DATUM}: the subsample of plate '{subsample.plate}' is {shown}",
            "give the numbers of its rows: a tensor of one dim, of int64",
        )
    if (
        rows.device != device or rows.dtype != torch.int64
    ):  # else a capture would let the user's own tensor stand for it
        rows = rows.to(device=device, dtype=torch.int64)
    return torch.where(rows < 0, rows + subsample.full_size, rows)


def are_rows(rows: Tensor, subsample: PlateSubsample) -> Tensor:
    """Whether each is the number of a row."""
    return (rows >= 0) & (rows < subsample.full_size)


def out_of_range(subsample: PlateSubsample, error: Callable[[str, str], BaselineError]) -> BaselineError:
    """The error for a subsample with numbers of rows that are not there."""
    return error(
        f"{PER_DATUM}: the subsample of plate '{subsample.plate}' has rows beyond its {subsample.full_size}",
        f"number them from 0 to {subsample.full_size - 1}, or give the plate the size of all data",
    )


def is_whole(subsample: PlateSubsample) -> bool:
    """Whether a plate in a capture has all its rows in their order: what Pyro makes where nothing is subsampled."""
    origin = _origin(subsample.given, _COPIES)
    return origin is not None and origin.target is torch.ops.aten.arange.default and origin.args == (subsample.size,)


def is_permuted(subsample: PlateSubsample) -> bool:
    """Whether a plate in a capture has drawn its rows: part of a permutation, in which no row is there twice."""
    origin = _origin(subsample.given, {*_COPIES, torch.ops.aten.slice.Tensor})
    return origin is not None and origin.target is torch.ops.aten.randperm.default


_COPIES = {torch.ops.aten.alias.default, torch.ops.aten.clone.default, torch.ops.aten.detach.default}


def _origin(given: Any, through: Collection[Any]) -> fx.Node | None:
    """The node of a capture that a subsample's elements come from, by way of these operators; None if it is no node."""
    if not isinstance(given, Tensor) or not tracer.is_fake(given):
        return None
    node = tracer.node_of(given)
    while node.target in through:
        node = node.args[0]  # type: ignore[assignment]
    return node
