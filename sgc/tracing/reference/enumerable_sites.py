"""Refuses what cannot be enumerated, before Pyro tries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger

from sgc.errors import EnumerationError
from sgc.graph.plan import LARGEST_TABLE
from sgc.tracing.site_options.asked_estimators import base_distribution
from sgc.tracing.source import current_line


def check_enumerable(msg: Any, *, table: bool = True) -> None:
    """Refuse a sample statement that cannot be enumerated.

    :param table: whether all values are in one tensor.
    :raises EnumerationError: if its support is not finite, or the tensor would be too large.
    """
    fn, name = msg["fn"], msg["name"]
    described = type(base_distribution(fn)).__name__
    if not getattr(fn, "has_enumerate_support", False):
        raise EnumerationError(
            f"a {described} has no finite support that could be enumerated",
            site=name,
            source=current_line(),
            remedy="do not ask for its enumeration, and sample it in the guide",
        )
    if not table:
        return
    values = math.prod(fn.enumerate_support(expand=False).shape[:1])
    size = values * math.prod(fn.batch_shape)
    if size > LARGEST_TABLE:
        raise EnumerationError(
            f"its log density, for {values} values times a batch of {list(fn.batch_shape)}, would have {size} "
            f"elements, and the limit is {LARGEST_TABLE}",
            site=name,
            source=current_line(),
            remedy="in a loop, put the statements within pyro.markov, so that fewer sites are joint; or enumerate "
            "sequentially, or sample some of the sites in the guide",
        )


def note_plates(msg: Any, in_plates: dict[str, tuple[str, ...]]) -> None:
    """Note the vectorised plates of a site that is enumerated for each of their elements."""
    plates = tuple(frame.name for frame in msg["cond_indep_stack"] if frame.vectorized)
    if plates:
        in_plates[msg["name"]] = plates


def explain(error: ValueError, in_plates: Mapping[str, tuple[str, ...]]) -> None:
    """Add a note to Pyro's error about the shape of a density, where an enumerated site may be the reason."""
    if in_plates and "invalid log_prob shape" in str(error):
        sites = ", ".join(f"'{name}' in {', '.join(map(repr, plates))}" for name, plates in in_plates.items())
        error.add_note(
            f"enumerated for each element of a plate: {sites}. A density outside of that plate that depends on all "
            "elements would need all their joint values: move it into the plate, or do not enumerate the site"
        )


class EnumerableSites(Messenger):
    """Stands within Pyro's ``EnumMessenger``, so that it sees each statement first.

    ``in_plates`` are the sites that are enumerated for each element of vectorised plates, with these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_plates: dict[str, tuple[str, ...]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        infer = msg["infer"] or {}
        if msg["is_observed"] or not infer.get("enumerate") or infer.get("num_samples") is not None:
            return
        check_enumerable(msg, table=infer["enumerate"] == "parallel")
        if infer["enumerate"] == "parallel":
            note_plates(msg, self.in_plates)
