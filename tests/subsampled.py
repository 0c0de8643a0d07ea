"""Programs over subsamples of some data, with an average for each datum at their choices, and the plain loop of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from tests.programs import Pair

X = torch.tensor([0.3, -2.0, 4.0, 1.0, -6.0, 2.5, 9.0])
"""Data whose costs differ greatly."""

BETA = 0.7
OPTIONS: dict[str, Any] = {"use_decaying_avg_baseline": True, "average_per_datum": True, "baseline_beta": BETA}
PER_DATUM = {"baseline": OPTIONS}
AVERAGE = "__baseline_avg_downstream_cost_z"


def over_rows(infer: Any = PER_DATUM, size: int | None = None) -> Pair:
    """A choice for each datum of a subsample, which is given (``index``) or drawn (``size``)."""

    def rows(index: Any) -> Any:
        return pyro.plate("data", len(X), size, subsample=index)

    def model(index: Any = None) -> None:
        with rows(index) as i:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X[i])

    def guide(index: Any = None) -> None:
        logits = pyro.param("logits", lambda: torch.linspace(-0.5, 0.5, len(X)))
        with rows(index) as i:
            pyro.sample("z", dist.Bernoulli(logits=logits[i]), infer=infer)

    return model, guide


def over_minibatches(infer: Any = PER_DATUM) -> Pair:
    """A choice for each row of a minibatch, which is an argument beside the numbers of its rows: only the average needs
    these. The loss is NaN where a datum is.
    """

    def model(x: Tensor, index: Any) -> None:
        with pyro.plate("data", len(X), subsample=index):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor, index: Any) -> None:
        logit = pyro.param("logits", torch.tensor(0.3))
        with pyro.plate("data", len(X), subsample=index):
            pyro.sample("z", dist.Bernoulli(logits=logit), infer=infer)

    return model, guide


RATINGS = torch.linspace(-3.0, 3.0, 40).reshape(5, 2, 4).sin() * 4


def nested(infer: Any = PER_DATUM) -> Pair:
    """A choice for each user, side and item; users and items may be subsampled."""

    def plates(users: Any, items: Any) -> tuple[Any, Any, Any]:
        return (
            pyro.plate("users", 5, subsample=users, dim=-3),
            pyro.plate("sides", 2, dim=-2),
            pyro.plate("items", 4, subsample=items, dim=-1),
        )

    def model(users: Tensor | None, items: Tensor | None) -> None:
        one, two, three = plates(users, items)
        with one as i, two, three as j:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=RATINGS[i][:, :, j])

    def guide(users: Tensor | None, items: Tensor | None) -> None:
        logits = pyro.param("logits", lambda: torch.linspace(-0.5, 0.5, 5))
        one, two, three = plates(users, items)
        with one as i, two, three:
            pyro.sample("z", dist.Bernoulli(logits=logits[i][:, None, None]), infer=infer)

    return model, guide


class PlainLoop:
    """The average of a program with one latent site z, element by element, and the gradient with it.

    :param names: of the subsampled plates with their dims in the average.
    """

    def __init__(self, program: Pair, names: dict[str, int], *shape: int) -> None:
        self.model, self.guide = program
        self.names = names
        self.average = torch.zeros(shape)

    def step(self, seed: int, *args: Any) -> Tensor:
        """Draw as eager Pyro does, move the average on, and give the gradient in ``logits``."""
        pyro.set_rng_seed(seed)
        guide = poutine.trace(self.guide).get_trace(*args)
        model = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(*args)
        return self.move_on(guide, model)

    def move_on(self, guide: Any, model: Any) -> Tensor:
        guide.compute_log_prob()
        model.compute_log_prob()
        cost = (model.nodes["z"]["log_prob"] + model.nodes["x"]["log_prob"] - guide.nodes["z"]["log_prob"]).detach()
        full = dict(enumerate(self.average.shape))
        rows: list[Sequence[int]] = [range(size) for size in cost.shape]
        scale = 1.0
        for name, dim in self.names.items():
            rows[dim] = [int(row) % full[dim] for row in guide.nodes[name]["value"]]
            scale *= full[dim] / len(rows[dim])
        before, moved = self.average.clone(), set()
        baseline = torch.zeros_like(cost)
        for place in itertools.product(*(range(size) for size in cost.shape)):
            row = tuple(rows[dim][element] for dim, element in enumerate(place))
            baseline[place] = scale * before[row]
            if row not in moved:  # the first one counts
                self.average[row] = (1 - BETA) * cost[place] / scale + BETA * before[row]
                moved.add(row)
        score = guide.nodes["z"]["fn"].log_prob(guide.nodes["z"]["value"])
        (gradient,) = torch.autograd.grad(-(score * (cost - baseline)).sum(), pyro.get_param_store()._params["logits"])
        return gradient


def in_store(name: str = AVERAGE) -> Tensor:
    """What Pyro's store holds under the name of the average of z."""
    return pyro.get_param_store()._params[name].detach().clone()
