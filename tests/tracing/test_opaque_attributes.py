"""What a density that branches on values, which runs as Python, is made of: whatever attributes have its tensors."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import TraceGraph_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import sgc
from sgc.errors import CaptureError

taken: set[bool] = set()
"""The branches that were taken."""


class Branching(dist.TorchDistribution):  # type: ignore[misc]
    """Asks for a value before it computes anything."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real

    def __init__(self, held: Any, loc: Callable[[Any], Tensor]) -> None:
        self.held, self.loc = held, loc
        super().__init__(torch.Size(), torch.Size())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.zeros(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        loc = self.loc(self.held)
        taken.add(over := float(loc) > 0.3)
        return -((value - loc) ** 2) if over else -2 * (value - loc) ** 2


@dataclass(slots=True)
class Slotted:
    value: Tensor


class Private:
    __slots__ = ("__value",)

    def __init__(self, value: Tensor) -> None:
        self.__value = value

    def get(self) -> Tensor:
        return self.__value


@dataclass(frozen=True)
class Guarded:
    """Has what there is only one of."""

    value: Tensor
    lock: Any
    log: logging.Logger
    file: Any


def defaulting(a: Tensor) -> dict[str, Any]:
    made: dict[str, Any] = defaultdict(list)
    made["a"] = a
    return made


def with_defaults(a: Tensor) -> Callable[[], Tensor]:
    return lambda b=a, *, c=2 * a: b * c


KINDS: dict[str, Callable[[Tensor], Branching]] = {
    "a tensor": lambda a: Branching(a, lambda held: 2 * held),
    "slots": lambda a: Branching(Slotted(a), lambda held: 2 * held.value),
    "private slots": lambda a: Branching(Private(a), lambda held: 2 * held.get()),
    "a partial": lambda a: Branching(functools.partial(torch.mul, a, 2), lambda held: held()),
    "a deque": lambda a: Branching(deque([a], maxlen=2), lambda held: 2 * held[0]),
    "a set": lambda a: Branching({a}, lambda held: 2 * next(iter(held))),
    "a default dictionary": lambda a: Branching(defaulting(a), lambda held: held["a"] + len(held["b"])),
    "a closure": lambda a: Branching(lambda: 2 * a, lambda held: held()),
    "defaults": lambda a: Branching(with_defaults(a), lambda held: held()),
}


@pytest.fixture(autouse=True)
def nothing_taken() -> None:
    taken.clear()


def guide() -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


def compare(model: Callable[[], None], wanted: list[Tensor]) -> None:
    """Loss and gradients with Pyro's, while the parameters move."""
    module = sgc.compile(model, guide, backend="eager").initialize()
    wanted = [*wanted, *(pyro.param(name).unconstrained() for name in ("a", "loc"))]
    for seed in itertools.count():
        if seed >= 4 and len(taken) == 2:
            break
        assert seed < 40, taken
        results = []
        for loss_and_gradients in (
            lambda: module().backward(),
            lambda: TraceGraph_ELBO().loss_and_grads(model, guide),
        ):
            pyro.set_rng_seed(seed)
            loss_and_gradients()
            results.append([None if tensor.grad is None else tensor.grad.clone() for tensor in wanted])
            for tensor in wanted:
                tensor.grad = None
        torch.testing.assert_close(*results)
        assert all(gradient is not None for gradient in results[0])
        with torch.no_grad():
            for tensor in wanted:
                tensor.mul_(0.95)
    assert module.verify(), module.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_that_have_a_tensor(kind: str) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", KINDS[kind](pyro.param("a", torch.tensor(0.7)) + z), obs=torch.tensor(0.5))

    compare(model, [])


@pytest.mark.parametrize("kind", [nn.Linear, PyroModule[nn.Linear]])
def test_a_network_has_its_gradient(kind: Any) -> None:
    """It was lost in silence."""
    net = kind(1, 1)
    net.register_forward_hook(lambda *_: None)

    def model() -> None:
        pyro.module("net", net)
        a = pyro.param("a", torch.tensor(0.7)) + pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", Branching((net, a), lambda held: held[0](held[1].reshape(1)).sum()), obs=torch.tensor(0.5))

    compare(model, [net.weight, net.bias])


def test_what_there_is_only_one_of_is_left_as_it_is(tmp_path: Path) -> None:
    log = logging.getLogger("sgc.test")
    log.addHandler(handler := logging.NullHandler())
    with open(tmp_path / "file", "w") as file:

        def model() -> None:
            a = pyro.param("a", torch.tensor(0.7)) + pyro.sample("z", dist.Normal(0.0, 1.0))
            held = Guarded(a, threading.Lock(), log, file)
            pyro.sample("x", Branching(held, lambda held: 2 * held.value), obs=torch.tensor(0.5))

        compare(model, [])
    assert log.handlers == [handler]


OUTSIDE = nn.Linear(1, 1)


class Scaled(PyroModule):
    """Pyro gives the parameter from its store."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.5), constraints.positive)

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale


SCALED = Scaled()
LOST: dict[str, Callable[[Tensor], Branching]] = {
    "a global": lambda z: Branching(z, lambda held: OUTSIDE(held.reshape(1)).sum()),
    "a constrained parameter": lambda z: Branching((SCALED, z), lambda held: held[0](held[1])),
    "a global, on one branch": lambda z: Branching(z, lambda held: held if held < 0 else OUTSIDE(held.reshape(1))[0]),
}


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("kind", LOST)
def test_a_gradient_that_would_be_lost_is_an_error(kind: str, backend: Any) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", LOST[kind](z), obs=torch.tensor(0.5))

    module = sgc.compile(model, guide, backend=backend, wait=True)
    with pytest.raises(RuntimeError, match="so that the gradient would be lost") as caught:
        for seed in (2, 0):  # the first draws a negative number
            pyro.set_rng_seed(seed)
            module()
    assert 'pyro.sample("x"' in str(caught.value)
    assert backend == "inductor" or isinstance(caught.value, CaptureError)


def test_a_write_that_would_be_lost_is_an_error() -> None:
    norm = nn.BatchNorm1d(1)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        pyro.sample("x", Branching((norm, z), lambda held: held[0](held[1][:, None]).max()), obs=torch.tensor(0.5))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0).expand([4]).to_event(1))

    with pytest.raises(CaptureError, match="writes in place into a tensor that it was made of"):
        sgc.compile(model, guide, backend="eager")()
