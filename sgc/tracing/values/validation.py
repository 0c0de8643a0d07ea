"""Pyro's checks of parameters and values, recorded as nodes of the program.

A distribution checks its parameters when it is made and a value when it scores it, and branches on the outcome. A
capture records the outcome instead: a Boolean tensor that must be true everywhere. Whether it is made follows the same
switches as in Pyro: the class's default and each distribution's own ``validate_args``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from pyro import poutine
from torch import Tensor, fx
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.utils import lazy_property

from sgc.errors import DataDependenceError, SourceLine
from sgc.tracing import tracer
from sgc.tracing.leaves.opaque_calls import opaque_check
from sgc.tracing.source import current_line
from sgc.tracing.threads import replaced_here
from sgc.tracing.values.reads import DATA_DEPENDENT, Reads
from sgc.tracing.values.speculation import ConcreteRun, Speculation


@dataclass
class Requirement:
    """A condition of validity: all elements of the node's value are true.

    ``assumed`` says that it is one under which the program takes the branches that were captured, ``of_numbers`` one
    under which Python's numbers are those that are computed.
    """

    node: fx.Node
    what: str
    source: SourceLine | None
    site: str | None = None
    opaque: bool = False
    assumed: bool = False
    of_numbers: bool = False


@dataclass
class Requirements:
    """The conditions met so far, each once."""

    reads: Reads
    conditions: list[Requirement] = field(default_factory=list)
    _known: dict[Hashable, tuple[Requirement, Any]] = field(default_factory=dict)

    def parameters(self, distribution: Distribution) -> None:
        """What ``Distribution.__init__`` checks."""
        try:
            declared = distribution.arg_constraints
        except NotImplementedError:
            return
        for name, constraint in declared.items():
            if constraints.is_dependent(constraint):
                continue
            if name not in distribution.__dict__ and isinstance(getattr(type(distribution), name), lazy_property):
                continue
            self.add(constraint, getattr(distribution, name), f"{name} of {_name(distribution)}")

    def value(self, distribution: Distribution, value: Tensor) -> None:
        """What ``Distribution._validate_sample`` checks, except shapes, which the prototype has checked."""
        try:
            support = distribution.support
        except NotImplementedError:
            return
        assert support is not None
        self.add(support, value, f"the value in the support of {_name(distribution)}")

    def add(self, constraint: Constraint, value: Tensor, what: str) -> None:
        """Record that ``value`` satisfies ``constraint``."""
        version = 0 if value.is_inference() else value._version
        key = _identity(constraint), tracer.node_of(value), version
        known = self._known.get(key)
        if known is not None and not tracer.is_erased(known[0].node):
            return
        start, opaque = tracer.last_node(), False
        try:
            with self.reads.refused():
                valid = constraint.check(_narrowed(constraint, value))
        except DATA_DEPENDENT:
            tracer.erase_after(start)
            valid, opaque = opaque_check(constraint, value), True
        made = self._require(valid, f"{what} ({type(constraint).__name__.strip('_')})", opaque)
        self._known[key] = made, (constraint, value)  # kept, so that the identities in the key stay theirs

    def condition(self, holds: Tensor, what: str) -> None:
        """Record a condition for which the program or a library would raise an error."""
        self._require(holds, what, opaque=False)

    def number(self, holds: Tensor, what: str) -> None:
        """Record a condition under which a number of Python's is the one that is computed."""
        self._require(holds, what, opaque=False).of_numbers = True

    def assume(self, holds: Tensor, what: str, error: DataDependenceError) -> None:
        """Record the condition under which a branch on samples goes as it did in the capture."""
        made = Requirement(tracer.node_of(holds), what, error.source, error.site, assumed=True)
        self.conditions.append(made)

    def _require(self, valid: Tensor, what: str, opaque: bool) -> Requirement:
        valid = valid if valid.dtype is torch.bool else valid.bool()
        made = Requirement(tracer.node_of(valid), what, current_line(), opaque=opaque)
        self.conditions.append(made)
        return made


@contextmanager
def checks_as_nodes(reads: Reads, default: bool | None, *, speculate: bool) -> Iterator[Requirements]:
    """Record the checks of distributions while a program is captured.

    :param default: whether a distribution is checked that does not say so itself; None to check nothing at all.
    :param speculate: whether a branch on samples is assumed to go as it does now.
    """
    requirements = Requirements(reads)
    reads.check, reads.check_number = requirements.condition, requirements.number
    if speculate:
        reads.speculation = Speculation(ConcreteRun(reads.concrete, reads.before), requirements.assume)

    def init(
        self: Distribution, batch_shape: Any = _NO_SHAPE, event_shape: Any = _NO_SHAPE, validate_args: Any = None
    ) -> None:
        self._batch_shape, self._event_shape = batch_shape, event_shape
        if validate_args is not None or default is None:
            self._validate_args = default is not None and validate_args
        if self._validate_args:
            requirements.parameters(self)
        super(Distribution, self).__init__()

    def validate_sample(self: Distribution, value: Tensor) -> None:
        if self._validate_args:
            requirements.value(self, value)

    replaced: list[tuple[Any, str, Any]] = [
        (Distribution, "_validate_args", bool(default)),
        (poutine.util, "_VALIDATION_ENABLED", bool(default)),  # poutine.scale checks its scale
        *((type(constraint), "check", check) for constraint, check in _WITHOUT_BRANCHES),
    ]
    with ExitStack() as stack:
        stack.enter_context(replaced_here(Distribution, "__init__", init))
        stack.enter_context(replaced_here(Distribution, "_validate_sample", validate_sample))
        for patched in replaced:
            stack.enter_context(mock.patch.object(*patched))
        yield requirements


_NO_SHAPE = torch.Size()


def _symmetric(self: Constraint, value: Tensor) -> Tensor:
    return torch.isclose(value, value.mT, atol=1e-6).all(-2).all(-1)


def _positive_semidefinite(self: Constraint, value: Tensor) -> Tensor:
    symmetric = _symmetric(self, value)
    # Eigenvalues of what is not symmetric mean nothing, and computing those of a NaN is an error.
    checked = torch.where(symmetric[..., None, None], value, torch.eye(value.shape[-1], device=value.device))
    return symmetric & torch.linalg.eigvalsh(checked).ge(0).all(-1)


def _positive_definite(self: Constraint, value: Tensor) -> Tensor:
    return _symmetric(self, value) & torch.linalg.cholesky_ex(value).info.eq(0)


# torch's own return early where a matrix is not symmetric.
_WITHOUT_BRANCHES = (
    (constraints.symmetric, _symmetric),
    (constraints.positive_semidefinite, _positive_semidefinite),
    (constraints.positive_definite, _positive_definite),
)

_ELEMENTWISE = tuple(
    type(constraint)
    for constraint in (
        *(constraints.boolean, constraints.real, constraints.unit_interval, constraints.half_open_interval(0, 1)),
        *(constraints.positive, constraints.nonnegative, constraints.less_than(0), constraints.nonnegative_integer),
        constraints.integer_interval(0, 1),
    )
)


def _narrowed(constraint: Constraint, value: Tensor) -> Tensor:
    """For elementwise constraints, only one element along each expanded dim."""
    if isinstance(constraint, _ELEMENTWISE):
        for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
            if size > 1 and stride == 0:
                value = value.narrow(dim, 0, 1)
    return value


def _identity(value: Any) -> Hashable:
    """A key that is equal for equal constraints."""
    if isinstance(value, Constraint):
        return type(value), *((name, _identity(part)) for name, part in sorted(vars(value).items()))
    return value if type(value) in (bool, int, float) else id(value)  # the hash of one that is traced would be a read


def _name(distribution: Distribution) -> str:
    return type(distribution).__name__
