"""Numbers that change from call to call: two compilations, and Pyro's losses and gradients at each step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from math import exp
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

import sgc

DATA = torch.tensor([0.3, -1.2, 2.0])
RATE = 0.5


def guide(*args: Any, **kwargs: Any) -> None:
    loc = pyro.param("loc", torch.tensor(0.2))
    pyro.sample("z", dist.Normal(loc, pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)))
    pyro.sample("b", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))


def observe(loc: Any = 0.0, scale: Any = 1.0, prior: Any = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(0.0, prior))
    b = pyro.sample("b", dist.Bernoulli(0.5))
    with pyro.plate("rows", 3):
        pyro.sample("x", dist.Normal(z + b + loc, scale), obs=DATA)


def loss_and_gradients(loss: Callable[[], Any]) -> list[float]:
    store = pyro.get_param_store()
    pyro.set_rng_seed(3)
    for _, parameter in store.named_parameters():
        parameter.grad = None
    value = loss()
    gradients = [p.grad for _, p in sorted(store.named_parameters())]
    return [float(value), *(float("nan") if g is None else g.item() for g in gradients)]


def compare(module: sgc.LossModule, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Loss and gradients are Pyro's."""

    def ours() -> Tensor:
        loss: Tensor = module(*args, **kwargs)
        loss.backward()
        return loss

    module.initialize(*args, **kwargs)
    found = loss_and_gradients(ours)
    elbo = pyro.infer.TraceGraph_ELBO()
    expected = loss_and_gradients(lambda: elbo.loss_and_grads(model, guide, *args, **kwargs))
    assert found == pytest.approx(expected, rel=2e-6, abs=1e-6)


NUMBERS = (0.1, 0.25, 0.7, 1.0, 1.9)

USES: dict[str, Callable[[Any], None]] = {
    "prior": lambda a: observe(prior=a),
    "both parameters": lambda a: observe(a - 1, a),
    "arithmetic": lambda a: observe((1 - a) * 2 + a**2 / 3 - -a, 1.0 + abs(a - 1) % 0.7 + a // 0.3),
    "math": lambda a: observe(math.exp(-a), math.sqrt(a) + math.log1p(a)),
    "imported from math": lambda a: observe(exp(-a), 1.0),
    "extremes": lambda a: observe(min(1, a), max(0.3, 2 * a, 0.1)),
    "scale of sites": lambda a: poutine.scale(observe, scale=a)(),
    "tensors": lambda a: observe(torch.ones(3) * a + a / (a + torch.arange(3.0)), torch.tensor(a) ** 0.5),
    "integer tensors": lambda a: observe(torch.arange(3) * a, torch.ones(3, dtype=torch.int64) + a),
    "lists": lambda a: observe(torch.tensor([a, 0.5, 2 * a]), torch.as_tensor(a)),
    "filled": lambda a: observe(torch.full((3,), a), torch.zeros(3).fill_(a) + DATA.new_full((3,), a)),
    "clamped": lambda a: observe(DATA.clamp(min=a, max=2.0), torch.where(a < DATA, a, 2 * a)),
    "operators with a factor": lambda a: observe(torch.add(DATA, DATA, alpha=a), 1.0),
    "written": lambda a: observe(DATA.clone().index_fill_(0, torch.tensor([1]), 0.0).mul_(a), 1.0),
    "rounding": lambda a: observe(math.floor(3 * a) + math.ceil(a) - math.trunc(2 * a), 1.0 + round(a)),
    "logarithm to a base": lambda a: observe(math.log(1 + a, 10), math.hypot(a, 1.0)),
    "double precision": lambda a: observe((1e9 * (torch.tensor([a, a / 3], dtype=torch.float64) - 0.1 * a)).sum() % 7),
    "half precision": lambda a: observe((DATA.half() / a + DATA.bfloat16() * a).float()),
    "power of two": lambda a: observe(a / 2**60 * 2.0 ** (60 - 10 * a) / 2 ** (10 * a)),
    "conversions": lambda a: observe(float(a), 1.0 + round(a, 1) * 0 + int(3 * a > 100)),
    "keywords of distributions": lambda a: pyro.factor("f", a * torch.tensor(2.0)) or observe(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_uses_of_a_number(use: Callable[[Any], None]) -> None:
    def model(a: Any) -> None:
        use(a)

    module = sgc.compile(model, guide, backend="eager")
    for a in NUMBERS:
        compare(module, model, a)
    expected = len(NUMBERS) if use in (USES["conversions"], USES["half precision"]) else 2
    assert len(module.specializations) <= expected, module.misses()


class Kept:
    rate = 0.1

    def __init__(self) -> None:
        self.own = 0.1
        self.options = {"a": [0.1, 1.0], "b": 2}
        self.pair = (0.1, "text")

    def model(self) -> None:
        observe(self.own, self.rate + self.options["a"][0] * self.pair[0])

    def model_of_globals(self) -> None:
        observe(RATE)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 0.1

    def model(self) -> None:
        observe(torch.sigmoid(DATA / self.temperature))


def places() -> Iterator[Any]:
    kept, network = Kept(), Network()

    def default(a: float = 0.1, *, b: float = 0.1) -> None:
        observe(a + b)

    def change_default(a: float) -> None:
        default.__defaults__ = (a,)
        default.__kwdefaults__ = {"b": a}

    def closing() -> tuple[Callable[[], None], Callable[[float], None]]:
        held = 0.1

        def model() -> None:
            observe(held)

        def change(a: float) -> None:
            nonlocal held
            held = a

        return model, change

    yield "attribute", kept.model, lambda a: setattr(kept, "own", a)
    yield "of a class", kept.model, lambda a: setattr(Kept, "rate", a)
    yield "in a list in a dictionary", kept.model, lambda a: kept.options["a"].__setitem__(0, a)  # type: ignore
    yield "another dictionary", kept.model, lambda a: setattr(kept, "options", {"a": [a, 1.0], "b": 2})
    yield "in a tuple", kept.model, lambda a: setattr(kept, "pair", (a, "text"))
    yield "global", kept.model_of_globals, lambda a: globals().update(RATE=a)
    yield "module", network.model, lambda a: setattr(network, "temperature", a)
    yield "closure", *closing()
    yield "defaults", default, change_default


@pytest.mark.parametrize(("model", "change"), [pytest.param(*rest, id=name) for name, *rest in places()])
def test_places_of_a_number(model: Callable[..., None], change: Callable[[float], None]) -> None:
    module = sgc.compile(model, guide, backend="eager")
    try:
        for a in NUMBERS:
            change(a)
            compare(module, model)
            compare(module, model)
        assert len(module.specializations) <= 2, module.misses()
    finally:
        change(0.1)


def scheduled(floor: float, step: int, t: int) -> float:
    return max(floor, math.exp(-0.1 * step) * (1 - t / 10))


@pytest.mark.parametrize(
    "argument",
    [
        lambda i: i,  # a count of steps that is used as a number
        lambda i: np.float64(0.1 * i + 0.1),
        lambda i: {"weights": [0.5, 0.1 * i]},
        lambda i: functools.partial(scheduled, 0.05, i),
        lambda i: lambda t: t + i / 7,
    ],
)
def test_numbers_in_arguments(argument: Callable[[int], Any]) -> None:
    def model(a: Any) -> None:
        if callable(a):
            observe(a(1), 1 + a(2))
        elif isinstance(a, dict):
            observe(a["weights"][1] - a["weights"][0])
        else:
            observe(a / 10, prior=1 + a)

    module = sgc.compile(model, guide, backend="eager")
    for i in range(6):
        compare(module, model, argument(i))
    assert len(module.specializations) <= 2, module.misses()


def test_answers_about_a_number_are_guarded_and_not_the_number() -> None:
    def model(a: float) -> None:
        observe(a if a > 0.5 else 2.0)

    module = sgc.compile(model, guide, backend="eager")
    for a in (0.1, 0.2, 0.3, 0.6, 0.7, 0.4, 0.9):
        compare(module, model, a)
    assert len(module.specializations) == 3, module.misses()


@pytest.mark.parametrize(
    "structure",
    [
        lambda n: torch.ones(3, n).sum(-1),
        lambda n: sum((DATA * i for i in range(n)), torch.zeros(3)),
        lambda n: DATA[:n].sum(),
        lambda n: float("0" * n + "1.5") * len(str(n)),
        lambda n: torch.ones(3).expand(n, 3).sum(0),
        lambda n: [0.5, 1.5, 2.5, 3.5][n],
        lambda n: np.ones(n).sum(),
    ],
)
def test_a_number_that_decides_on_the_structure_is_known_by_value(structure: Callable[[int], Any]) -> None:
    def model(n: int, a: float) -> None:
        observe(structure(n) * a)

    module = sgc.compile(model, guide, backend="eager")
    for n, a in ((1, 0.5), (2, 0.6), (3, 0.7), (1, 0.8), (3, 0.9)):
        compare(module, model, n, a)
    assert len(module.specializations) <= 5


@pytest.mark.parametrize("where", ["argument", "attribute"])
def test_a_number_that_is_known_by_value_is_said_to_be_with_the_line_that_needs_it(where: str) -> None:
    kept = Kept()

    def model(a: float) -> None:
        number = a if where == "argument" else kept.own
        observe(float(np.exp(np.array([number]))[0]))

    module = sgc.compile(model, guide, backend="eager")
    for a in NUMBERS:
        kept.own = a
        compare(module, model, a if where == "argument" else 1.0)
    (miss,) = module.misses()
    assert "the program needs the number itself at " in miss.remedy and "np.exp" in miss.remedy


def test_a_guard_shows_a_size_as_the_whole_number_that_it_is() -> None:
    def model(n: int, a: float) -> None:
        observe(torch.ones(3, n).sum(-1) * a, 1.0 + float(f"{a}"))

    module = sgc.compile(model, guide, backend="eager")
    for n, a in ((4, 0.5), (5, 2.0), (4, 3.0), (5, 3.0)):
        compare(module, model, n, a)
    text = module.guards()
    assert "args[0]: any int" in text and "5 from args[0], read at" in text and "5.0" not in text
    assert "3.0 from args[1]" in text or "args[1] == 3.0" in text


def test_numbers_that_numpy_computes_with_are_known_by_value() -> None:
    def model(a: float) -> None:
        observe(float(np.exp(a)) + torch.from_numpy(np.array([a, 2 * a, 0.0], dtype=np.float32)))

    module = sgc.compile(model, guide, backend="eager")
    for a in NUMBERS:
        compare(module, model, a)


def test_a_number_that_the_program_keeps_is_a_plain_one_after_a_capture() -> None:
    kept: list[Any] = []

    def model(a: float) -> None:
        kept.append(2 * a)
        observe(a)

    module = sgc.compile(model, guide, backend="eager")
    for a in NUMBERS:
        compare(module, model, a)
    assert all(type(number) is float and number in [2 * a for a in NUMBERS] for number in kept)


def test_the_sign_of_a_zero_and_nan_in_an_answer() -> None:
    def model(a: float) -> None:
        observe(math.copysign(1.0, a), 1.0 + (a != a))

    module = sgc.compile(model, guide, backend="eager")
    for a in (1.0, 2.0, 0.0, -0.0, 3.0):
        compare(module, model, a)


def test_a_weight_of_the_kl_in_steps_of_svi() -> None:
    def model(x: Tensor, beta: float) -> None:
        with poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x: Tensor, beta: float) -> None:
        with poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)), 0.5))

    def losses(make: Callable[..., Any], elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        found = [svi.step(DATA + i, min(1.0, 0.15 * (i + 1))) for i in range(10)]
        if isinstance(svi, sgc.SVI):
            assert len(svi.loss_module.specializations) == 2
        return found

    expected = losses(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO())
    assert losses(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="eager")) == pytest.approx(expected, rel=1e-5)
    assert losses(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="inductor")) == pytest.approx(expected, rel=1e-4)
