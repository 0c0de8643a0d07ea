"""Two runs of a program must hand the same numbers, texts and tensors to torch and Pyro; else it would be frozen."""

from __future__ import annotations

import functools
import itertools
import queue
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from sgc.errors import CaptureError
from tests import programs
from tests.programs import model_reading
from tests.programs import switch_guide as guide

DATA = torch.tensor(0.3)


class Countdown:
    """An iterator of the user's own, which Python's ``for`` would take items of."""

    def __init__(self) -> None:
        self.left = 100

    def __iter__(self) -> Countdown:
        return self

    def __next__(self) -> float:
        self.left -= 1
        return float(self.left)


class Counter:
    """Counts in an attribute."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        self.count += 1
        return self.count


def filled(items: Any) -> queue.Queue[Any]:
    made: queue.Queue[Any] = queue.Queue()
    for item in items:
        made.put(item)
    return made


def of_a_log(log: list[int]) -> float:
    log.append(0)
    return float(len(log))


def every_other(count: Counter, x: Tensor) -> Tensor:
    """Another branch in every second run: a third run would be like the first."""
    if count() % 2:
        return x * 2
    return x


CHANGING: list[tuple[str, Callable[[Any], Any], Callable[[], Any]]] = [
    ("a counter", lambda counter: counter() * 0.1, Counter),
    ("an iterator of one's own", lambda items: next(items), Countdown),
    ("a queue of tensors", lambda items: items.get(), lambda: filled(torch.arange(20.0))),
    ("a queue of arrays", lambda items: torch.from_numpy(items.get()), lambda: filled(np.arange(20.0)[:, None])),
    ("the length of a log", of_a_log, list),
    ("a stack", lambda items: items.pop(), lambda: [0.1 * i for i in range(20)]),
    ("a branch", lambda count: every_other(count, DATA), Counter),
    ("the system's random numbers", lambda source: source.random(), random.SystemRandom),
    ("a new generator", lambda _: np.random.default_rng().normal(), Counter),
    ("a new generator's tensor", lambda _: torch.as_tensor(np.random.default_rng().normal(size=2)).sum(), Counter),
    ("a text", lambda count: float(f"{count()}.5"), Counter),
    ("a power", lambda count: DATA ** count(), Counter),
    ("an index", lambda count: torch.arange(10.0)[count()], Counter),
    ("a slice", lambda count: torch.arange(10.0)[: count()].sum(), Counter),
]


@pytest.mark.parametrize(("read", "make"), [row[1:] for row in CHANGING], ids=[row[0] for row in CHANGING])
@pytest.mark.filterwarnings("ignore::sgc.errors.SideEffectWarning")
def test_what_changes_from_run_to_run_is_refused(read: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    module = sgc.compile(model_reading(functools.partial(read, make())), guide, backend="eager")
    with pytest.raises(CaptureError) as caught:
        module()
    assert any(file in str(caught.value) for file in (__file__, str(programs.__file__)))
    assert "remedy" in str(caught.value) and not module.specializations


def scaled(count: Counter) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with poutine.scale(scale=float(count())):
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


def transformed(count: Counter) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    shifted = dist.transforms.AffineTransform(float(count()), 1.0)
    pyro.sample("x", dist.TransformedDistribution(dist.Normal(z, 1.0), [shifted]), obs=DATA)


def tempered(count: Counter) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    relaxed = dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5 * count()), logits=z)
    pyro.sample("x", relaxed, obs=torch.tensor(1.0))


def renamed(count: Counter) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample(f"x_{count()}", dist.Normal(z, 1.0), obs=DATA)


def observed(count: Counter) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.arange(9.0)[count()])


def masked(count: Counter) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with poutine.mask(mask=bool(count() % 2)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


@pytest.mark.parametrize("model", [scaled, transformed, tempered, renamed, observed, masked])
@pytest.mark.filterwarnings("ignore::sgc.errors.SideEffectWarning")
def test_what_changes_in_a_statement_is_refused_with_its_line(model: Callable[[Counter], None]) -> None:
    module = sgc.compile(functools.partial(model, Counter()), guide, backend="eager")
    with pytest.raises(CaptureError, match="differ here") as caught:
        module()
    assert caught.value.source is not None and caught.value.source.file == __file__


def test_the_two_values_are_shown() -> None:
    counter = Counter()
    with pytest.raises(CaptureError) as caught:
        sgc.compile(model_reading(lambda: counter() * 0.5), guide, backend="eager")()
    assert "1.5 in one, 2.0 in the next" in str(caught.value)


def test_a_running_mean_in_an_attribute_is_refused() -> None:
    """Pyro goes on from step to step; of a capture's tensor nothing may stay in the object, so that it would not."""

    class Running:
        mean = torch.tensor(0.0)

    def read() -> Tensor:
        Running.mean = 0.9 * Running.mean + 0.1
        return Running.mean

    with pytest.warns(sgc.errors.SideEffectWarning), pytest.raises(CaptureError, match="differ here"):
        sgc.compile(model_reading(read), guide, backend="eager")()


# -- what is no change


class Lazy:
    """Makes a table when it is first asked."""

    table: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0.0, 1.0, 5) * 2.0
        return self.table.sum()


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.arange(float(size)) * 0.1


def first_of(items: list[float]) -> float:
    for item in iter(items):
        return item
    return 0.0


SAME: list[tuple[str, Callable[[], Any]]] = [
    ("made at first", Lazy()),
    ("memoised", lambda: table(3).sum()),
    ("a parameter's first value", lambda: pyro.param("w", lambda: torch.ones(2) * 0.5).sum()),
    ("an array's tensor", lambda: torch.from_numpy(np.arange(3.0)).sum()),
    ("a seeded generator", lambda: np.random.default_rng(3).normal()),
    ("an iterator of its own", lambda: first_of([0.5, 0.7])),
    ("next of its own iterator", lambda: next(iter([0.5, 0.7]))),
    ("next of a generator expression", lambda: next(i * 0.5 for i in itertools.count(1))),
    ("the first parameter", lambda: next(torch.nn.Linear(1, 1, device="meta").parameters()).shape[0] * 0.5),
    ("sizes read as a list", lambda: torch.full((torch.tensor([2, 3]) + 1).tolist(), 0.5).sum()),
    ("NaN", lambda: torch.nan_to_num(torch.tensor(float("nan")), 0.5)),
    ("a counter times zero", functools.partial(lambda counter: counter() * 0, Counter())),
]


@pytest.mark.parametrize("read", [row[1] for row in SAME], ids=[row[0] for row in SAME])
@pytest.mark.filterwarnings("ignore::sgc.errors.SideEffectWarning")
def test_what_is_the_same_in_each_run_is_compiled(read: Callable[[], Any]) -> None:
    model = model_reading(read)
    module = sgc.compile(model, guide, backend="eager").initialize()
    pyro.set_rng_seed(1)
    ours = module().item()
    pyro.set_rng_seed(1)
    assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide), rel=1e-6)
    assert len(module.specializations) == 1


class Choosy(dist.TorchDistribution):  # type: ignore[misc]
    """Branches on values in its density, which so becomes one opaque node."""

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.real

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.normal(self.loc.expand(self.shape(sample_shape)), 1.0)

    def log_prob(self, value: Tensor) -> Tensor:
        density: Tensor = -((value - self.loc) ** 2)
        if (value > 100).any():
            return density * 0.5
        shifted = density - 1.0
        return shifted * 2.0 if (value < 1).all() else shifted


def test_a_density_that_branches_on_values_is_no_difference() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", Choosy(z * 1.0), obs=DATA)

    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.verify().ok
