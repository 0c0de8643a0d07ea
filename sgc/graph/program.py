"""What the capture yields: the program as one fx graph, and a record for each input and each Pyro site.

A :class:`Program` holds no statistical decision. Its fx graph computes, from the declared inputs, the value
and the log density of every site, in exactly the order in which eager Pyro would. Records point into the
fx graph by the names of its nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import fx

from sgc.errors import SourceLine
from sgc.graph.effects import written_arguments, written_placeholders
from sgc.graph.enumerated_values import Enumerated, ExpectedCost, Marginal
from sgc.graph.sizes import is_sized_by_call, shape_of


class InputKind(Enum):
    """What an input of the program is; it decides whether a gradient is asked for and who owns the tensor."""

    PARAMETER = "parameter"
    DATA = "data"
    BUFFER = "buffer"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Input:
    """One placeholder of the program's fx graph.

    ``requires_grad`` holds for a parameter that is being trained, and for data whose gradient is wanted.
    """

    name: str
    kind: InputKind
    node: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


@dataclass(frozen=True)
class Plate:
    """One ``CondIndepStackFrame``: a plate as seen from a site.

    ``dim`` is negative for a vectorised plate and None for a sequential one; ``counter`` tells the iterations
    of a sequential plate apart. ``size`` is the size of the subsample, ``full_size`` that of what it is drawn from.
    """

    name: str
    dim: int | None
    size: int
    counter: int
    full_size: int | None = field(default=None, compare=False)

    @property
    def vectorized(self) -> bool:
        return self.dim is not None


class SiteKind(Enum):
    """What a sample statement of the program is."""

    LATENT = "latent"
    OBSERVED = "observed"
    DETERMINISTIC = "deterministic"
    SUBSAMPLE = "subsample"


PARTICLE_PLATE = "num_particles_vectorized"
"""The name that Pyro gives the plate of vectorised particles."""


@dataclass(frozen=True)
class Particles:
    """How the particles of one call are computed: independent runs of the program, whose estimates are averaged.

    ``runs`` is how often the emitted module has the program, one run after another; ``calls`` how often the module is
    called. ``plate`` is the name of the plate that holds all particles of one run, where they are vectorised.
    """

    runs: int = 1
    calls: int = 1
    plate: str | None = None
    in_plate: int = 1

    @property
    def in_a_call(self) -> int:
        """The number of particles in one call of the emitted module."""
        return self.runs * self.in_plate

    @property
    def count(self) -> int:
        """The number of all particles."""
        return self.calls * self.in_a_call


@dataclass(frozen=True)
class HidingMask:
    """The fx node of a mask below ``to_event`` (None: it hides all), and how many dims each entry that it hides has."""

    node: str | None
    event_dims: int


@dataclass(frozen=True)
class Density:
    """The log-density terms of a site in one trace, each the name of an fx node (None: identically zero).

    ``log_prob`` is scaled and masked; ``score_function`` is neither and ``entropy_term`` is both, as in
    Pyro's ``ScoreParts``. The last two are known for guide sites only. ``plates`` are those of this trace.
    Where ``masks`` below ``to_event`` hide entries of the sample, ``masked_score_function`` is without these.
    ``probability`` is that of each value of an enumerated site; ``values_in`` says which enumerated sites have their
    values in which dims, negative, of these terms.
    """

    log_prob: str
    plates: tuple[Plate, ...]
    score_function: str | None = None
    entropy_term: str | None = None
    masked_score_function: str | None = None
    masks: tuple[HidingMask, ...] = ()
    probability: str | None = None
    values_in: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class PlateRows:
    """The rows of its data that a vectorised plate has in a step, for what is kept for each of ``full_size`` data.

    ``index`` is the fx node of their numbers; ``distinct`` says that none is there twice.
    """

    plate: str
    dim: int
    full_size: int
    index: str
    distinct: bool


@dataclass(frozen=True)
class Baseline:
    """The options of ``infer={"baseline": {...}}`` at a site, with the traced tensors they gave.

    ``value`` is the fx node of ``baseline_value``, or of ``nn_baseline(nn_baseline_input.detach())``; ``idle_beta``
    says that there is a ``baseline_beta`` and no decaying average. ``leave_one_out`` and ``per_datum`` are not Pyro's:
    the average has a row for each datum of the plates in ``rows``.
    """

    kind: str | None
    value: str | None
    value_shape: tuple[int, ...] | None
    decaying_average: bool
    beta: float
    idle_beta: bool = False
    leave_one_out: bool = False
    per_datum: bool = False
    rows: tuple[PlateRows, ...] = ()


@dataclass(frozen=True)
class ClosedForm:
    """That of a site's two densities: the fx node of ``KL(q || p)``, scaled and masked as ``q`` is.

    ``weighted_alike`` says whether ``p`` is so, too (None: unknown); ``in_model`` is the model's line.
    """

    divergence: str
    weighted_alike: bool | None
    in_model: SourceLine | None


@dataclass(frozen=True)
class Site:
    """One sample statement: what is known of it before any statistical decision.

    ``shape`` is without the dims of enumerated values.

    ``value`` is an fx node of its own, so that everything computed from the sample is downstream of it.
    ``baseline_in_model`` says that the model's statement has a baseline of its own, ``observed_in_model`` that the
    model has observed what the guide draws.
    """

    name: str
    kind: SiteKind
    distribution: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    plates: tuple[Plate, ...]
    has_rsample: bool
    value: str | None
    source: SourceLine | None
    model: Density | None = None
    guide: Density | None = None
    scale: float | str | None = None
    masked: bool = False
    opaque: bool = False
    baseline: Baseline | None = None
    baseline_in_model: bool = False
    enumerated: Enumerated | None = None
    observed_in_model: bool = False
    closed_form: ClosedForm | None = None

    @property
    def has_all_values(self) -> bool:
        """Whether it is enumerated."""
        return self.enumerated is not None and not self.enumerated.samples

    @property
    def has_samples(self) -> bool:
        """Whether it has several samples."""
        return self.enumerated is not None and self.enumerated.samples


@dataclass(frozen=True)
class ValueGuard:
    """A value that the program read from its inputs while it was captured, and that its structure relies on."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    value: Any
    source: SourceLine | None

    @cached_property
    def writes(self) -> bool:
        """Whether the program has written into tensors before."""
        return any(written_arguments(node) for node in self.module.graph.nodes)


@dataclass(frozen=True)
class Check:
    """A condition that Pyro's validation, or a branch on samples, makes: all elements of the node's value are true.

    ``what`` says of what, ``random`` whether it depends on a draw, ``opaque`` that it is a call of Python,
    ``assumed`` that it is a branch on samples, which goes another way where the condition is false, ``of_numbers`` that
    numbers of the program's Python are others than those that are computed where it is.
    """

    node: str
    what: str
    site: str | None
    source: SourceLine | None
    random: bool
    opaque: bool
    assumed: bool = False
    of_numbers: bool = False

    def __str__(self) -> str:
        where = f" at site '{self.site}'" if self.site else f" at {self.source}" if self.source else ""
        if self.assumed:
            return f"{self.what} at {self.source}"
        return f"{self.what}{where}{', by a call of Python' if self.opaque else ''}"


@dataclass
class Program:
    """A captured model and guide for one particle (or for all of them, where they are vectorised).

    ``enumerates`` says that sites that ask for it were enumerated, and the costs' expectation taken.
    """

    module: fx.GraphModule
    inputs: tuple[Input, ...]
    sites: tuple[Site, ...]
    model_order: tuple[str, ...]
    guide_order: tuple[str, ...]
    value_guards: tuple[ValueGuard, ...] = ()
    checks: tuple[Check, ...] = ()
    enumerates: bool = False
    marginals: tuple[Marginal, ...] = ()
    expected: tuple[ExpectedCost, ...] = ()

    def node(self, name: str) -> fx.Node:
        """The fx node of that name."""
        return self._nodes[name]

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.module.graph.nodes}

    @cached_property
    def written(self) -> frozenset[str]:
        """The names of the inputs that it writes into."""
        written = {node.name for node in written_placeholders(self.module.graph)}
        return frozenset(declared.name for declared in self.inputs if declared.node in written)

    @cached_property
    def used(self) -> frozenset[str]:
        """The names of the inputs that something is computed of, or written into, or that Python reads."""
        read = {name for guard in self.value_guards for name in guard.inputs}
        computed = {declared.name for declared in self.inputs if self.node(declared.node).users}
        return frozenset(read | computed)

    def is_resized(self, name: str) -> bool:
        """Whether the size of an input differs from call to call."""
        node = next(declared.node for declared in self.inputs if declared.name == name)
        return is_sized_by_call(self.node(node).meta["val"])

    def site(self, name: str) -> Site:
        """The site of that name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    def values_in(self, density: Density, node: str) -> tuple[tuple[str, int], ...]:
        """The enumerated sites whose values a term of a density has dims for, each with its dim: those of the guide in
        its order, then those of the model alone.

        :param node: the fx node of the term.
        """
        shape, dims = self.shape(node), {name: dim for dim, name in density.values_in}
        own = ((name, dims[name]) for name in dict.fromkeys((*self.guide_order, *self.model_order)) if name in dims)
        return tuple((name, dim) for name, dim in own if len(shape) >= -dim and shape[dim] != 1)

    def shape(self, node: str) -> tuple[int, ...]:
        """The shape of an fx node's value."""
        return shape_of(self.node(node).meta["val"].shape)

    def latent_sites(self) -> Iterator[Site]:
        """The latent sites, in the order in which they were sampled."""
        return (site for site in self.sites if site.kind is SiteKind.LATENT)

    @property
    def data_size(self) -> int | None:
        """How many data the loss is of, where subsampling plates around observed sites say so, and say the same."""
        sampled = {
            frozenset(
                (plate.name, plate.full_size)
                for plate in site.plates
                if plate.full_size is not None and plate.full_size != plate.size
            )
            for site in self.sites
            if site.kind is SiteKind.OBSERVED
        } - {frozenset()}
        if len(sampled) != 1:
            return None
        (plates,) = sampled
        return math.prod(size for _, size in plates)
