"""What is asked of each site, and of all particles, before the program is captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sgc.config import Objective
from sgc.errors import SourceLine
from sgc.graph.estimator_rules import Needs, Sampler
from sgc.graph.nodes import Estimator
from sgc.graph.program import Particles

WITH_BASELINES: frozenset[Objective] = frozenset({"elbo"})
"""The objectives that subtract baselines; Pyro's other classes do not look at ``infer["baseline"]``."""

OF_ALL_PARTICLES: frozenset[Objective] = frozenset({"RenyiELBO", "iwae"})
"""The objectives that are not means over particles, and need all of them in one program."""


ENUMERATING: frozenset[Objective] = frozenset({"TraceEnum_ELBO"})
"""The objectives that run the program with the sites enumerated that ask for it by ``infer["enumerate"]``."""


LARGEST_TABLE = 2**28
"""The most elements that a table over enumerated values may have: a gigabyte of float32."""


@dataclass(frozen=True)
class SiteRequest:
    """What the statement of a latent site asks for, as it stands there; nothing is decided.

    ``estimator`` is ``infer["estimator"]``, of any type; None: there is none. ``baseline`` are the names of the options
    of its baseline that are switched on. ``table`` is how many elements its log density would have with all values
    side by side; None: its support is not finite, or cannot be listed. ``samples`` is how many samples side by side it
    asks for; 0: for none. ``in_model`` says that the guide does not draw the site. ``in_random_loop`` is the sequential
    plate around it that draws which of its data it runs for: under the name of a site there is another one at each run.
    """

    name: str
    source: SourceLine | None
    sampler: Sampler
    estimator: object = None
    baseline: frozenset[str] = frozenset()
    table: int | None = None
    samples: int = 0
    in_model: bool = False
    in_random_loop: str | None = None


@dataclass(frozen=True)
class SitePlan:
    """What was decided for a site: its estimator (None: the default), and what the capture must see to.

    ``measured`` says that estimator and baseline were chosen by measurement.
    """

    estimator: Estimator | None = None
    needs: Needs = field(default_factory=Needs)
    measured: bool = False


@dataclass(frozen=True)
class Plan:
    """What was decided before the capture; sites that ask for nothing are not in ``sites``."""

    sites: Mapping[str, SitePlan] = field(default_factory=dict)
    particles: Particles = field(default_factory=Particles)
    objective: Objective = "elbo"
    alpha: float = 0.0
    analytic_kl: bool = False
    several_samples: bool = False
    """Whether a site is to have several samples side by side."""

    @property
    def asks_for_closed_forms(self) -> bool:
        """Whether the capture computes the closed form of a site's two densities, where there is one."""
        return self.analytic_kl or self.objective == "TraceMeanField_ELBO"

    @property
    def enumerates(self) -> bool:
        """Whether a site is to have all its values at once, or several samples, because it asks for that."""
        return self.several_samples or any(site.needs.all_values for site in self.sites.values())

    def at(self, site: str) -> SitePlan:
        """The plan of a site."""
        return self.sites.get(site, SitePlan())
