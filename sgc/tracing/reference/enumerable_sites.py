"""Refuses what cannot be enumerated, before Pyro tries."""

from __future__ import annotations

import math
from typing import Any

from pyro.poutine.messenger import Messenger

from sgc.errors import EnumerationError
from sgc.tracing.asked_estimators import base_distribution
from sgc.tracing.source import current_line

LARGEST = 2**28
"""The most elements that the log density of an enumerated site may have: a gigabyte of float32."""


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
        fn, name = msg["fn"], msg["name"]
        described = type(base_distribution(fn)).__name__
        if not getattr(fn, "has_enumerate_support", False):
            raise EnumerationError(
                f"a {described} has no finite support that could be enumerated",
                site=name,
                source=current_line(),
                remedy="leave infer={'enumerate': ...} out, and sample the site in the guide",
            )
        if infer["enumerate"] != "parallel":
            return
        plates = tuple(frame.name for frame in msg["cond_indep_stack"] if frame.vectorized)
        if plates:
            self.in_plates[name] = plates
        values = math.prod(fn.enumerate_support(expand=False).shape[:1])
        size = values * math.prod(fn.batch_shape)
        if size > LARGEST:
            raise EnumerationError(
                f"its log density, for {values} values times a batch of {list(fn.batch_shape)}, would have {size} "
                f"elements, and the limit is {LARGEST}",
                site=name,
                source=current_line(),
                remedy="in a loop, put the statements within pyro.markov, so that fewer sites are joint; or enumerate "
                "sequentially, or sample some of the sites in the guide",
            )

    def explain(self, error: ValueError) -> None:
        """Add a note to Pyro's error about the shape of a density, where an enumerated site may be the reason."""
        if self.in_plates and "invalid log_prob shape" in str(error):
            sites = ", ".join(f"'{name}' in {', '.join(map(repr, plates))}" for name, plates in self.in_plates.items())
            error.add_note(
                f"enumerated for each element of a plate: {sites}. A density outside of that plate that depends on all "
                "elements would need all their joint values: move it into the plate, or do not enumerate the site"
            )
