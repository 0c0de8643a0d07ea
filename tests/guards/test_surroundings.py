"""What a program takes from around it by way of a module, a class, a function or a handler, and what changes there."""

from __future__ import annotations

import math
import os
import sys
import types
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import transform_to

import sgc
from sgc.errors import SideEffectWarning

DATA = torch.tensor([0.3, -1.2, 0.8, 1.1, 2.0])

Change = Callable[[], None]
Case = tuple[Callable[[], None], Change]


def model_of(scale: Callable[[], Any]) -> Callable[[], None]:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(z, scale()), obs=DATA)

    return model


def guide() -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.1))


@pytest.fixture
def settings() -> Iterator[Any]:
    """A module of the user's, with a module in it."""
    made, inner = types.ModuleType("sgc_test_settings"), types.ModuleType("sgc_test_settings.inner")
    exec("S = 1.0\nD = {'s': 1.0}\ndef f():\n    return S\n", vars(made))
    vars(inner)["S"] = 1.0
    vars(made)["inner"] = inner
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


class Defaults:
    beta = 1.0

    def scale(self) -> float:
        return self.beta

    def __call__(self) -> None:
        model_of(self.scale)()


class Network(nn.Module):
    beta = 1.0

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(z, self.beta), obs=DATA)


class Bayesian(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.z = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self) -> None:
        z = self.z
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


def setter(holder: Any, name: str, value: Any) -> Change:
    return lambda: setattr(holder, name, value)


def of_a_module(settings: Any) -> Case:
    return model_of(lambda: settings.S), setter(settings, "S", 0.2)


def of_a_dictionary_in_a_module(settings: Any) -> Case:
    return model_of(lambda: settings.D["s"]), lambda: settings.D.update(s=0.2)


def of_a_module_in_a_module(settings: Any) -> Case:
    return model_of(lambda: settings.inner.S), setter(settings.inner, "S", 0.2)


def by_a_function_of_a_module(settings: Any) -> Case:
    return model_of(lambda: settings.f()), setter(settings, "S", 0.2)


def of_a_function(settings: Any) -> Case:
    def scale() -> Any:
        return vars(scale)["s"]

    vars(scale)["s"] = 1.0
    return model_of(scale), setter(scale, "s", 0.2)


def default_of_a_class(settings: Any) -> Case:
    made = Defaults()
    return made, setter(made, "beta", 0.2)


def method_of_a_class(settings: Any) -> Case:
    made = Defaults()
    return made, setter(made, "scale", lambda: 0.2)


def default_of_a_network(settings: Any) -> Case:
    made = Network()
    return made, setter(made, "beta", 0.2)


def prior_of_a_bayesian_network(settings: Any) -> Case:
    made = Bayesian()
    return made, setter(made, "z", PyroSample(dist.Normal(3.0, 0.1)))


def data_of_a_handler(settings: Any) -> Case:
    data = {"x": DATA}

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(z, 1.0))

    return pyro.condition(model, data=data), lambda: data.update(x=DATA + 3.0)


def scale_of_a_handler(settings: Any) -> Case:
    handler = poutine.scale_messenger.ScaleMessenger(scale=1.0)
    inner = model_of(lambda: 1.0)

    def model() -> None:
        with handler:
            inner()

    return model, setter(handler, "scale", 0.1)


def of_a_distribution(settings: Any) -> Case:
    prior = dist.Gamma(torch.tensor(2.0), torch.tensor(2.0))
    return observing(prior), setter(prior, "rate", torch.tensor(5.0))


def of_a_distribution_in_others(settings: Any) -> Case:
    inner = dist.Gamma(2.0, 2.0)
    whole = dist.TransformedDistribution(inner.expand([1]).to_event(1).mask(True).mask(True), [])
    return observing(whole), setter(whole.base_dist.base_dist.base_dist.base_dist, "rate", torch.tensor([5.0]))


def of_a_transform(settings: Any) -> Case:
    transform = dist.transforms.AffineTransform(0.0, 1.0, cache_size=1)
    return model_of(lambda: transform(transform.inv(torch.tensor(1.0)) + 1.0)), setter(transform, "scale", 3.0)


def of_a_constraint(settings: Any) -> Case:
    bounds = dist.constraints.interval(0.0, 1.0)
    return model_of(lambda: transform_to(bounds)(torch.tensor(0.3))), setter(bounds, "upper_bound", 3.0)


def observing(prior: Any) -> Callable[[], None]:
    inner = model_of(lambda: 1.0)

    def model() -> None:
        pyro.sample("w", prior, obs=torch.ones(prior.shape()))
        inner()

    return model


CASES = [
    of_a_distribution,
    of_a_distribution_in_others,
    of_a_transform,
    of_a_constraint,
    of_a_module,
    of_a_dictionary_in_a_module,
    of_a_module_in_a_module,
    by_a_function_of_a_module,
    of_a_function,
    default_of_a_class,
    method_of_a_class,
    default_of_a_network,
    prior_of_a_bayesian_network,
    data_of_a_handler,
    scale_of_a_handler,
]


class Queue(deque):  # type: ignore[type-arg]
    beta = 1.0


class Pair(NamedTuple):
    value: float

    def scaled(self) -> float:
        return self.value * FACTOR


def changed_pair(pair: Pair) -> None:
    global FACTOR
    FACTOR += 1.0


FACTOR = 1.0

HELD: list[tuple[str, Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = [
    ("deque, longer", lambda: deque([1.0]), sum, lambda held: held.append(0.5)),
    ("deque, full", lambda: deque([1.0, 0.5], 2), lambda held: held[0], lambda held: held.append(0.7)),
    ("deque in a list", lambda: [deque([1.0, 0.5])], lambda held: held[0][0], lambda held: held[0].rotate()),
    ("a list in a deque", lambda: deque([[1.0]]), lambda held: held[0][0], lambda held: held[0].insert(0, 0.5)),
    (
        "an object in a deque",
        lambda: deque([Defaults()]),
        lambda held: held[0].beta,
        lambda held: setattr(held[0], "beta", 0.5),
    ),
    ("a list with attributes", lambda: Queue([1.0]), lambda held: held.beta, lambda held: setattr(held, "beta", 0.5)),
    ("a tuple with methods", lambda: Pair(1.0), lambda held: held.scaled(), changed_pair),
    ("Counter", lambda: Counter("ab"), lambda held: 1.0 + held["c"], lambda held: held.update("c")),
    (
        "OrderedDict",
        lambda: OrderedDict(a=1.0, b=0.5),
        lambda held: next(iter(held.values())),
        lambda held: held.move_to_end("a"),
    ),
    ("defaultdict", lambda: defaultdict(lambda: 1.0), lambda held: held["a"], lambda held: held.update(a=0.5)),
    ("array", lambda: array("d", [1.0]), lambda held: held[0], lambda held: held.insert(0, 0.5)),
    ("bytearray", lambda: bytearray(b"1"), lambda held: float(held), lambda held: held.extend(b"0")),
    ("namespace", lambda: types.SimpleNamespace(a=[1.0]), lambda held: held.a[0], lambda held: held.a.insert(0, 0.5)),
    ("a new name", types.SimpleNamespace, lambda held: getattr(held, "a", 1.0), lambda held: setattr(held, "a", 0.5)),
    ("variable", Defaults, lambda _: float(os.environ.get("SGC_B", "1")), lambda _: os.environ.update(SGC_B="0.5")),
    ("getenv", Defaults, lambda _: float(os.getenv("SGC_C", "1")), lambda _: os.environ.update(SGC_C="0.5")),
]


@pytest.mark.parametrize(("make", "reads", "write"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_a_change_of_what_is_held_is_seen(
    make: Callable[[], Any], reads: Callable[[Any], Any], write: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SGC_B", "SGC_C"):
        monkeypatch.setenv(name, "1")
    held = make()
    model = model_of(lambda: reads(held))
    module = sgc.compile(model, guide, backend="eager")
    ours, before = losses(module, model)
    assert losses(module, model)[0] == ours == pytest.approx(before, rel=1e-6)
    assert len(module.specializations) == 1
    write(held)
    ours, after = losses(module, model)
    assert ours == pytest.approx(after, rel=1e-6) != pytest.approx(before)


def test_a_queue_keeps_no_traced_tensor() -> None:
    history: deque[Any] = deque(maxlen=2)

    def model() -> None:
        history.append(pyro.sample("z", dist.Normal(0.0, 1.0)))

    with pytest.warns(SideEffectWarning):
        sgc.compile(model, guide, backend="eager")()
    assert all(math.isfinite(float(kept)) for kept in history)


def losses(module: sgc.LossModule, model: Callable[[], None]) -> tuple[float, float]:
    pyro.set_rng_seed(3)
    ours: Tensor = module()
    pyro.set_rng_seed(3)
    return ours.item(), pyro.infer.TraceGraph_ELBO().loss(model, guide)


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_seen(case: Callable[[Any], Case], settings: Any) -> None:
    model, change = case(settings)
    module = sgc.compile(model, guide, backend="eager")
    ours, before = losses(module, model)
    assert ours == pytest.approx(before, rel=1e-6)
    assert losses(module, model)[0] == ours
    assert len(module.specializations) == 1
    change()
    ours, after = losses(module, model)
    assert ours == pytest.approx(after, rel=1e-6)
    assert after != pytest.approx(before)
