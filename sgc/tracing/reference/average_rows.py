"""Eager Pyro's decaying average, of which a step reads and moves on the rows of its subsample, where a site asks so.

Pyro finds these rows in the place of the average, and does its own arithmetic on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pyro.infer import tracegraph_elbo
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.distributions import constraints

from sgc.tracing.site_options.baseline_options import PER_DATUM, MakeError, errors_of, read_options
from sgc.tracing.site_options.plate_subsamples import (
    SUBSAMPLES,
    PlateSubsample,
    are_rows,
    asks_per_datum,
    out_of_range,
    plates_with_rows,
    rows_of,
)
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX, names_of
from sgc.tracing.state.param_store import Store, current_store
from sgc.tracing.threads import replaced_here

_pyros = tracegraph_elbo._construct_baseline


def construct_baseline(name: str, site: Any, cost: Tensor) -> tuple[bool, Any, Any]:
    """Pyro's ``_construct_baseline``: whether there is a baseline, its squared error, and the baseline.

    :param site: of the guide's trace.
    :param cost: the downstream cost.
    :raises BaselineError: if the rows of a subsample are not such, or are not known, or options contradict one another.
    """
    subsamples, line = site["infer"].get(SUBSAMPLES, ({}, None))
    error, baseline = errors_of(name, line), site["infer"].get("baseline")
    if isinstance(baseline, Mapping) and PER_DATUM in baseline:
        read_options(baseline, error)
    plates = list(plates_with_rows(site, subsamples, line)) if asks_per_datum(site["infer"]) else []
    rows = [_checked_rows(plate, cost.device, error) for plate in plates]
    shape, scale = [1] * (-min((plate.dim for plate in plates), default=0) - cost.dim()) + list(cost.shape), 1.0
    for plate in plates:
        shape[plate.dim] = plate.full_size
        scale *= plate.full_size / plate.size
    kept = current_store().get(BASELINE_PREFIX + name)
    is_of_other_shape = kept is not None and kept.shape != cost.shape and _decays(baseline)
    lent: AbstractContextManager[None] = nullcontext()
    if plates or is_of_other_shape:
        lent = _lent_rows(name, site["value"].device, cost.shape, shape, plates, rows, scale)
    with lent:
        result: tuple[bool, Any, Any] = _pyros(name, {**site, "infer": without_option(site["infer"])}, cost)
    return result


@contextmanager
def pyros_averages_by_rows() -> Iterator[None]:
    """Let Pyro's own loss do so, too."""
    with replaced_here(tracegraph_elbo, "_construct_baseline", construct_baseline):
        yield


def _decays(baseline: Any) -> bool:
    return isinstance(baseline, Mapping) and baseline.get("use_decaying_avg_baseline") is True


def without_option(infer: Any) -> Any:
    """``infer`` of a site without the option, which Pyro would refuse."""
    baseline = infer.get("baseline")
    if not baseline or PER_DATUM not in baseline:
        return infer
    return {**infer, "baseline": {option: value for option, value in baseline.items() if option != PER_DATUM}}


def _checked_rows(plate: PlateSubsample, device: torch.device, error: MakeError) -> Tensor:
    rows = rows_of(plate, device, error)
    if not are_rows(rows, plate).all():
        raise out_of_range(plate, error)
    return rows


@contextmanager
def _lent_rows(
    name: str,
    device: torch.device,
    own_shape: Sequence[int],
    shape: Sequence[int],
    plates: Sequence[PlateSubsample],
    rows: Sequence[Tensor],
    scale: float,
) -> Iterator[None]:
    """Let Pyro's store hold rows of an average, and put what it makes of them back into the average.

    Of an average by place it holds that of this shape, where it had one of another.

    :param own_shape: of the rows, as the downstream cost has it, without dims to the left that are of one element.
    :param shape: of the average.
    :param scale: by how much the plates scale a cost, which the average is without.
    """
    store, plain = current_store(), BASELINE_PREFIX + name
    own = _name_of(store, plain, tuple(shape))
    kept = store.get(own)
    average = torch.zeros(tuple(shape), device=device) if kept is None else kept.detach().clone()
    index = [torch.arange(size, device=device) for size in shape]
    for plate, numbers in zip(plates, rows, strict=True):
        index[plate.dim] = numbers
    places = torch.meshgrid(*index, indexing="ij") if index else ()
    of_rows = average[places]
    before = store.get(plain)
    store.put(plain, (of_rows * scale).reshape(own_shape), constraints.real)
    try:
        yield
        of_pyro: Any = store.get(plain)
        moved = detach_provenance(of_pyro).detach().reshape(of_rows.shape) / scale
    finally:
        store.forget(plain)
        if before is not None:
            store.put(plain, before, constraints.real)
    for plate, numbers in zip(plates, rows, strict=True):
        moved = moved.index_select(plate.dim, _first_of_each(numbers))
    average[places] = moved.to(average.dtype)
    store.put(own, average, constraints.real)


def _first_of_each(numbers: Tensor) -> Tensor:
    first: dict[int, int] = {}
    for position, row in enumerate(numbers.tolist()):
        first.setdefault(row, position)
    return torch.tensor([first[row] for row in numbers.tolist()], device=numbers.device)


def _name_of(store: Store, plain: str, shape: tuple[int, ...]) -> str:
    """The name in the store of the average of this shape."""
    plain, own = names_of(plain, shape)
    kept = store.get(plain)
    return plain if kept is None or tuple(kept.shape) == shape else own
