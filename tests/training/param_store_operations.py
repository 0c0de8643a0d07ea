"""Random sequences of steps, losses and changes of Pyro's param store, by sgc and by eager Pyro."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import sgc
import sgc.infer

Make = Callable[..., Any]
"""Makes an SVI of a model, a guide and an optimizer."""

Operation = tuple[str, int, int]
"""What is done, and two numbers that say to what."""

DATA = [torch.linspace(-1.0, 2.0, 2 * size).reshape(size, 2) for size in (3, 4)]


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.5))


def observe(x: Tensor, loc: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x[:, 0])


class Net(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        nn.init.constant_(self.inner.weight, weight)
        nn.init.constant_(self.inner.bias, -weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).squeeze(-1)


class Regression(PyroModule):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        nn.init.constant_(self.inner.weight, weight)
        nn.init.constant_(self.inner.bias, -weight)
        self.shift = nn.Parameter(torch.tensor(weight))
        self.scale = PyroParam(torch.tensor(weight), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        observe(x, self.scale * self.inner(x).squeeze(-1) + self.shift)


def continuous(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


@dataclass
class World:
    """Modules, programs over them, and what trains these; one for sgc and a like one for Pyro.

    :param shares_optimizer: whether one optimizer trains all programs.
    """

    make: Make
    shares_optimizer: bool = False
    nets: list[Net] = field(default_factory=lambda: [Net(1.0), Net(3.0), Net(5.0)])
    states: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.held = self.nets[2]
        self.regressions = [Regression(0.5), Regression(1.5)]
        self.loose = torch.tensor(0.4, requires_grad=True)
        self.guides: list[nn.Module] = [AutoNormal(continuous, init_scale=scale) for scale in (0.2, 0.9)]
        self.guides.append(AutoDelta(continuous))
        for of in self.guides:
            of(DATA[0])  # makes its parameters
        pyro.clear_param_store()
        optimizer = pyro.optim.Adam({"lr": 0.1})
        self.svis = [
            self.make(model, of, optimizer if self.shares_optimizer else pyro.optim.Adam({"lr": 0.1}))
            for model, of in self.programs()
        ]

    def programs(self) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
        first, second, _ = self.nets

        def registered(net: Net, *names: str, update: bool = False) -> Callable[[Tensor], None]:
            def model(x: Tensor) -> None:
                for name in names:
                    pyro.module(name, net, update_module_params=update)
                observe(x, net(x))

            return model

        def of_held(x: Tensor) -> None:
            pyro.module("m", self.held)
            observe(x, self.held(x))

        def parameter(x: Tensor) -> None:
            observe(x, pyro.param("w", torch.tensor(0.7)) * x[:, 1])

        def positive(x: Tensor) -> None:
            observe(x, pyro.param("w", torch.tensor(1.7), constraint=constraints.positive) * x[:, 0])

        def closed_over(x: Tensor) -> None:
            pyro.param("w", self.loose)
            observe(x, self.loose * x[:, 1])

        def by_name(x: Tensor) -> None:
            pyro.module("m", first)
            weight = pyro.param("m$$$inner.weight")
            observe(x, second(x) + (x * weight).sum(-1))

        yield registered(first, "m"), guide
        yield registered(second, "m"), guide
        yield of_held, guide
        yield parameter, guide
        yield positive, guide
        yield registered(first, "m", update=True), guide
        yield registered(second, "m", update=True), guide
        yield registered(first), guide
        yield registered(first, "a", "m"), guide
        yield by_name, guide
        yield closed_over, guide
        yield self.regressions[0], guide
        yield self.regressions[1], guide
        for of in self.guides:
            yield continuous, of

    def tensors(self) -> dict[str, Tensor]:
        """All that can be trained, by where it is."""
        modules = {f"net{i}": net for i, net in enumerate(self.nets)}
        modules |= {f"regression{i}": module for i, module in enumerate(self.regressions)}
        modules |= {f"guide{i}": module for i, module in enumerate(self.guides)}
        inside = {f"{name}.{at}": p for name, module in modules.items() for at, p in module.named_parameters()}
        inside["loose"] = self.loose
        return inside | {f"store {name}": p for name, p in pyro.get_param_store().named_parameters()}

    def seen(self) -> dict[str, tuple[str, list[float]]]:
        """Where each tensor stands first, and its values; and the constraints."""
        tensors, first = self.tensors(), {}
        held = pyro.get_param_store()._constraints
        shown = {
            name: (first.setdefault(id(t), name), t.detach().flatten().tolist()) for name, t in sorted(tensors.items())
        }
        return shown | {f"constraint {name}": (str(one), []) for name, one in sorted(held.items())}

    def do(self, operation: Operation) -> float | str | None:
        """Do it; the loss where it has one, or the kind of an error."""
        what, one, two = operation
        store = pyro.get_param_store()
        for tensor in self.tensors().values():
            tensor.grad = None
        names = sorted(store.keys())
        name = names[one % len(names)] if names else None
        if what in ("step", "evaluate"):
            svi = self.svis[one % len(self.svis)]
            pyro.set_rng_seed(two)
            try:
                return float((svi.step if what == "step" else svi.evaluate_loss)(DATA[two % 2]))
            except (KeyError, RuntimeError, ValueError, AssertionError) as error:
                return type(error).__name__
        if what == "clear":
            pyro.clear_param_store()
        elif what == "hold":
            self.held = self.nets[one % 3]
        elif what == "parameter":
            net = self.nets[one % 3]
            net.inner.weight = nn.Parameter(net.inner.weight.detach() + 0.25)
        elif what == "swap":
            a, b = self.nets[one % 3], self.nets[two % 3]
            a.inner, b.inner = b.inner, a.inner
        elif what == "write":
            with torch.no_grad():
                self.nets[one % 3].inner.weight.add_(0.125)
        elif what == "keep":
            self.states.append(store.get_state())
        elif what == "set" and self.states:
            store.set_state(self.states[one % len(self.states)])
        elif what == "load":
            state = store.get_state()
            params = {n: p.detach().clone().requires_grad_() for n, p in state["params"].items()}
            store.set_state({"params": params, "constraints": state["constraints"]})
        elif what == "scope":
            state = self.states[one % len(self.states)] if self.states and two % 2 else None
            with store.scope(state):
                return self.do(("step" if two % 3 else "evaluate", one, two))
        elif name is None:
            return None
        elif what == "delete":
            del store[name]
        elif what == "assign":
            store[name] = store[name].detach() + 0.5
        elif what == "replace":
            store.replace_param(name, store[name].detach() + 0.5, store[name])
        elif what == "rename":
            other = names[two % len(names)]
            mine, theirs = store._params[name], store._params[other]
            if mine.shape == theirs.shape:
                constraint = store._constraints
                store.set_state(
                    {
                        "params": {name: theirs, other: mine},
                        "constraints": {name: constraint[other], other: constraint[name]},
                    }
                )
        return None


PROGRAMS = 16

KINDS = (
    *["step"] * 12,
    *["evaluate"] * 6,
    *["clear"] * 3,
    *["hold", "parameter", "swap", "write", "keep", "set", "load", "scope", "delete", "assign", "replace", "rename"],
)


def sequence(seed: int, length: int) -> list[Operation]:
    """A random sequence over three of the programs."""
    chance = random.Random(seed)
    few = chance.sample(range(PROGRAMS), 3)
    drawn = []
    for _ in range(length):
        what = chance.choice(KINDS)
        one = chance.choice(few) if what in ("step", "evaluate", "scope") else chance.randrange(60)
        drawn.append((what, one, chance.randrange(60)))
    return drawn


def first_difference(operations: Sequence[Operation], make: Make, *, shares_optimizer: bool = False) -> str | None:
    """Where two worlds part that do the same, one with ``make`` and one with eager Pyro; None where they never do."""
    theirs = World(by_pyro, shares_optimizer)
    expected = [(theirs.do(operation), theirs.seen()) for operation in operations]
    mine = World(make, shares_optimizer)
    for position, (operation, (loss, seen)) in enumerate(zip(operations, expected, strict=True)):
        outcome, own = mine.do(operation), mine.seen()
        at = f"{position} {operation}"
        if not (isinstance(loss, float) and isinstance(outcome, float)):
            if loss != outcome:
                return f"{at}: {outcome}, not {loss}"
        elif loss != pytest.approx(outcome, rel=1e-4, abs=1e-4):
            return f"{at}: a loss of {outcome}, not {loss}"
        if own.keys() != seen.keys():
            return f"{at}: {sorted(own.keys() ^ seen.keys())} in one of them only"
        for name, (stands, values) in seen.items():
            if own[name][0] != stands:
                return f"{at}: {name} is {own[name][0]}, not {stands}"
            if own[name][1] != pytest.approx(values, rel=1e-4, abs=1e-4):
                return f"{at}: {name} has {own[name][1]}, not {values}"
    return None


def by_sgc(backend: str | None) -> Make:
    """Makes an ``sgc.SVI``."""
    return lambda *parts: sgc.SVI(*parts, sgc.infer.TraceGraph_ELBO(backend=backend))


def by_pyros_svi(*parts: Any) -> Any:
    """Pyro's ``SVI`` with a compiled loss."""
    return pyro.infer.SVI(*parts, sgc.infer.TraceGraph_ELBO(backend="eager"))


def by_pyro(*parts: Any) -> Any:
    """Pyro's ``SVI`` with Pyro's loss."""
    return pyro.infer.SVI(*parts, pyro.infer.TraceGraph_ELBO())
