"""What a training loop keeps in the object that its model is a method of: only what the model reads is guarded."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

import sgc

DATA = torch.tensor([0.3, -1.2, 0.8])
LOSSES: list[float] = []


def guide() -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.1))


def model_of(read: Callable[[], Any]) -> Callable[[], None]:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(z, read()), obs=DATA)

    return model


class Plain:
    pass


class Module(nn.Module):
    pass


class Bayesian(PyroModule):
    pass


@pytest.mark.parametrize("base", [Plain, Module, Bayesian])
def test_what_a_loop_keeps_beside_its_model_is_not_guarded(base: type) -> None:
    class Trainer(base):  # type: ignore[misc]
        best: float = float("inf")
        runs = 0

        def __init__(self) -> None:
            super().__init__()
            self.scale = 1.0
            self.losses: list[float] = []
            self.history: dict[str, list[float]] = defaultdict(list)
            self.epoch = 0

        def model(self) -> None:
            model_of(lambda: self.scale)()

        def step(self, module: sgc.LossModule) -> None:
            loss = module().item()
            self.losses.append(loss)
            LOSSES.append(loss)  # a global that only the loop names
            self.history["loss"].append(loss)
            self.best = min(self.best, loss)
            self.last = loss
            type(self).runs += 1

    trainer = Trainer()
    module = sgc.compile(trainer.model, guide, backend="eager")
    for trainer.epoch in range(3):
        trainer.step(module)
    assert len(module.specializations) == 1
    trainer.scale = 2.0
    trainer.step(module)
    assert len(module.specializations) == 2


class Holder:
    def __init__(self) -> None:
        self.level = 1.0

    def __getitem__(self, name: str) -> float:
        return float(vars(self)[name])

    @property
    def scale(self) -> float:
        return self.level

    def named(self) -> float:
        return float(getattr(self, "le" + "vel"))

    def matched(self) -> float:
        match self:
            case Holder(level=level):
                return level
        raise AssertionError

    def inner(self) -> float:
        return sum(self.level for _ in range(1))


@dataclass
class Options:
    level: float = 1.0

    def scale(self) -> float:
        return float(operator.attrgetter("lev" + "el")(self))


class Slotted:
    __slots__ = ("level", "steps")

    def __init__(self) -> None:
        self.level = 1.0
        self.steps = 0


class OfALibrary(nn.Softplus):
    """An attribute that torch's own code reads."""

    def scale(self) -> torch.Tensor:
        return self(torch.tensor(1.0))


class ReadLater:
    """A method that the first run of all does not call."""

    def __init__(self) -> None:
        self.level = 1.0
        self.kept: list[Any] = []

    def later(self) -> float:
        return self.level

    def scale(self) -> float:
        if not self.kept:
            self.kept.append(None)
            return 1.0
        return self.later()


@functools.cache
def reference_of(holder: Any) -> Any:
    return weakref.ref(holder)


def case(holder: Any, read: Callable[[Any], Any], name: str = "level") -> Any:
    return pytest.param(holder, read, name, id=f"{type(holder).__name__}-{read.__qualname__.rpartition('.')[2]}")


@pytest.mark.parametrize(
    ("holder", "read", "name"),
    [
        case(Holder(), Holder.inner),
        case(Holder(), Holder.named),
        case(Holder(), Holder.matched),
        case(Holder(), lambda holder: holder.scale),
        case(Holder(), lambda holder: holder["level"]),
        case(Holder(), lambda holder: dict(inspect.getmembers(holder))["level"]),
        case(Holder(), lambda holder: copy.copy(holder).level),
        case(Options(), Options.scale),
        case(Slotted(), lambda holder: holder.level),
        case(OfALibrary(), OfALibrary.scale, "beta"),
        case(ReadLater(), ReadLater.scale),
        case(Holder(), lambda holder: reference_of(holder)().level),
    ],
)
def test_what_the_model_reads_is_guarded_however_it_is_read(holder: Any, read: Callable[[Any], Any], name: str) -> None:
    model = model_of(lambda: read(holder))
    module = sgc.compile(model, guide, backend="eager")
    for value in (1.0, 2.5):
        setattr(holder, name, value)
        for _ in range(2):
            pyro.set_rng_seed(3)
            ours = module().item()
        pyro.set_rng_seed(3)
        assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide), rel=1e-6)
    assert len(module.specializations) == 2
