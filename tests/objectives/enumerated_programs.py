"""Programs with discrete sites that are enumerated: in the model, in the guide, both, beside sites that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

Program = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""Model, guide, arguments and options of the ELBO."""

PARALLEL = {"enumerate": "parallel"}
SEQUENTIAL = {"enumerate": "sequential"}


def weights(name: str, *shape: int) -> Tensor:
    start = torch.linspace(1.0, 2.0, int(torch.Size(shape).numel())).reshape(shape)
    return pyro.param(name, start / start.sum(-1, keepdim=True), constraint=constraints.simplex)


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


def data(*shape: int) -> Tensor:
    return torch.linspace(-1.0, 2.0, int(torch.Size(shape).numel())).reshape(shape)


def crossing_plates() -> None:
    """A model whose enumerated sites are joint, and in plates that are not nested."""
    rows, columns = pyro.plate("rows", 2, dim=-1), pyro.plate("columns", 3, dim=-2)
    with rows:
        a = pyro.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)
    with columns:
        b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
    with rows, columns:
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.zeros(3, 2))


def mixture() -> Program:
    @config_enumerate
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-0.5, 0.3, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights("w", 3)))
            pyro.sample("x", dist.Normal(loc[z], 0.8), obs=x)

    return model, nothing, (data(6),), {}


def mixture_of_a_subsample() -> Program:
    """Scaled outside of the log, masked inside."""

    @config_enumerate
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-0.5, 0.3, 1.0]))
        with pyro.plate("data", 12, subsample_size=6), poutine.mask(mask=x > -0.5):
            z = pyro.sample("z", dist.Categorical(weights("w", 3)))
            pyro.sample("x", dist.Normal(loc[z], 0.8), obs=x)

    return model, nothing, (data(6),), {}


def bayesian_mixture() -> Program:
    """Pathwise sites of the guide above a site that is summed out of the model."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w), infer=PARALLEL)
            pyro.sample("x", dist.Normal(loc[z], 0.8), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample(
            "w", dist.Dirichlet(pyro.param("a", torch.tensor([1.0, 2.0, 1.5]), constraint=constraints.positive))
        )
        with pyro.plate("components", 3):
            pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor([-1.0, 0.0, 1.0])), 0.3))

    return model, guide, (data(6),), {}


def hidden_markov(steps: int = 5) -> Program:
    def model(x: Tensor) -> None:
        transition, loc = weights("transition", 3, 3), pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        z: Any = 0
        for t in pyro.markov(range(steps)):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]), infer=PARALLEL)
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 0.8), obs=x[t])

    return model, nothing, (data(steps),), {}


def second_order() -> Program:
    """Each state depends on the two before it; sequences in a plate, of several lengths."""

    def model(x: Tensor, lengths: Tensor) -> None:
        first, transition = weights("first", 2), weights("transition", 2, 2, 2)
        on = pyro.param("on", torch.tensor([0.2, 0.7]), constraint=constraints.unit_interval)
        with pyro.plate("sequences", len(x), dim=-1):
            before, last = None, None
            for t in pyro.markov(range(4), history=2):
                probs = first if before is None else Vindex(transition)[before, last]
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer=PARALLEL)
                    pyro.sample(f"x_{t}", dist.Bernoulli(on[z]), obs=(x[:, t] > 0).to(x.dtype))
                before, last = (last, z) if last is not None else (z, z)

    return model, nothing, (data(5, 4), torch.tensor([4, 3, 4, 1, 2])), {}


def plates_within() -> Program:
    """A choice for each row, one for each entry: densities are summed over the inner plate before the outer choice."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([[-0.5, 0.1], [0.4, 1.0]]))
        with pyro.plate("rows", x.shape[0], dim=-2):
            topic = pyro.sample("topic", dist.Categorical(weights("w", 2)), infer=PARALLEL)
            with pyro.plate("columns", x.shape[1], dim=-1):
                word = pyro.sample("word", dist.Bernoulli(weights("v", 2)[topic]), infer=PARALLEL)
                pyro.sample("x", dist.Normal(Vindex(loc)[topic, word.long()], 1.0), obs=x)

    return model, nothing, (data(3, 2),), {}


def _chosen(x: Tensor, infer: dict[str, Any] | None = None) -> None:
    prior = pyro.param("prior", torch.tensor(0.3))
    on = pyro.sample("on", dist.Bernoulli(logits=prior), infer={})
    w = pyro.sample("w", dist.Normal(on, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(z + w + on, 1.0), obs=x)


def _chooses(of_on: dict[str, Any], of_z: dict[str, Any]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))), infer=dict(of_on))
        pyro.sample("w", dist.Normal(pyro.param("m", torch.tensor(0.4)) * on, 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(weights("r", len(x), 3)), infer=dict(of_z))

    return guide


def in_the_guide() -> Program:
    """A sample of ``w`` for each value of ``on``."""
    return _chosen, _chooses(PARALLEL, PARALLEL), (data(3),), {}


def beside_a_score_function() -> Program:
    return _chosen, _chooses(PARALLEL, {}), (data(3),), {}


def one_after_another() -> Program:
    return _chosen, _chooses(SEQUENTIAL, PARALLEL), (data(3),), {}


def one_after_another_beside_a_score_function() -> Program:
    return _chosen, _chooses(SEQUENTIAL, {}), (data(3),), {}


def a_branch_on_each_value() -> Program:
    """Other sites, in the guide and summed out of the model, for each value that the guide takes one after another."""

    def model(x: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            if on:
                w = pyro.sample("w", dist.Categorical(weights("v", 3)))
                z = pyro.sample("z", dist.Bernoulli(0.4), infer=PARALLEL)
                pyro.sample("x", dist.Normal(w - z, 1.0), obs=x)
            else:
                pyro.sample("x", dist.Laplace(pyro.param("loc", torch.tensor(0.2)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))), infer=SEQUENTIAL)
        if on.item():
            with pyro.plate("data", len(x)):
                pyro.sample("w", dist.Categorical(weights("r", len(x), 3)), infer=PARALLEL)

    return model, guide, (data(3),), {}


def a_loop_of_each_length() -> Program:
    """How many sites there are is a value; one of them is taken one after another too."""

    def model(x: Tensor) -> None:
        count = pyro.sample("count", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        for t in range(int(count) + 1):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(0.3))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide(x: Tensor) -> None:
        count = pyro.sample("count", dist.Categorical(weights("q", 3)), infer=SEQUENTIAL)
        on = pyro.param("on", torch.tensor([0.2, 0.5, 0.7]), constraint=constraints.unit_interval)
        for t in range(int(count) + 1):
            pyro.sample(f"z_{t}", dist.Bernoulli(on[t]), infer=PARALLEL if t else SEQUENTIAL)

    return model, guide, (data(3),), {}


def a_family_for_each_value() -> Program:
    """The same sites, of other distributions: with and without a pathwise gradient."""

    def model(x: Tensor) -> None:
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.2, 0.8])))
        w = pyro.sample("w", (dist.Normal(0.0, 1.0), dist.Poisson(2.0))[kind.item()])
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        kind = pyro.sample("kind", dist.Categorical(weights("q", 2)), infer=SEQUENTIAL)
        rate = pyro.param("rate", torch.tensor(1.5), constraint=constraints.positive)
        pyro.sample("w", dist.Poisson(rate) if kind == 1 else dist.Normal(rate, 0.5))

    return model, guide, (torch.tensor(0.4),), {"strict_enumeration_warning": False}


def several_samples() -> Program:
    return _chosen, _chooses({"enumerate": "parallel", "num_samples": 4}, PARALLEL), (data(3),), {}


def particles() -> Program:
    return _chosen, _chooses(PARALLEL, {}), (data(3),), {"num_particles": 3}


def vectorised_particles() -> Program:
    options = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    return _chosen, _chooses(PARALLEL, {}), (data(3),), options


def one_value() -> Program:
    """Sites of the model that have a single value, beside one of two: a mixture of one component, say."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(1)), infer=PARALLEL)
            z = pyro.sample("z", dist.Categorical(weights("w", 1, 2)[k]), infer=PARALLEL)
            n = pyro.sample("n", dist.Binomial(0, 0.3), infer=PARALLEL)
            loc = pyro.param("loc", torch.tensor([-0.5, 1.0]))[z]
            pyro.sample("x", dist.Normal(loc + n + k, 1.0), obs=x)

    return model, nothing, (data(3),), {}


def values_of_each_number() -> Program:
    """A mixture of one, two and three components, for each value that the guide takes."""

    def model(x: Tensor) -> None:
        count = pyro.sample("count", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        size = int(count) + 1
        with pyro.plate("components", size):
            loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(size)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        count = pyro.sample("count", dist.Categorical(weights("q", 3)), infer=SEQUENTIAL)
        size = int(count) + 1
        with pyro.plate("components", size):
            pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor([-1.0, 0.0, 1.0]))[:size], 0.3))

    return model, guide, (data(4),), {}


def one_value_in_the_guide() -> Program:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(1)))
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor([0.3]))[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Categorical(torch.ones(1)), infer=PARALLEL)

    return model, guide, (torch.tensor(0.4),), {}


def in_model_and_guide() -> Program:
    def model(x: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights("w", 2, 3)[on.long()]), infer=PARALLEL)
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("on", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))), infer=PARALLEL)

    return model, guide, (data(3),), {}


def impossible_values() -> Program:
    """Values that have no probability in the guide, where the model's density is infinite."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        probs = torch.cat([q, torch.zeros(1)])
        pyro.sample("z", dist.Categorical(probs), infer=PARALLEL)

    return model, guide, (torch.tensor(0.4),), {}


def nothing_enumerated() -> Program:
    """Score functions alone, by DiCE; told apart by plates only."""
    options = {"strict_enumeration_warning": False}
    return _chosen, _chooses({}, {}), (data(3),), options


PROGRAMS: tuple[Callable[[], Program], ...] = (
    mixture,
    mixture_of_a_subsample,
    bayesian_mixture,
    hidden_markov,
    second_order,
    plates_within,
    in_the_guide,
    beside_a_score_function,
    one_after_another,
    one_after_another_beside_a_score_function,
    a_branch_on_each_value,
    a_loop_of_each_length,
    a_family_for_each_value,
    several_samples,
    particles,
    vectorised_particles,
    one_value,
    values_of_each_number,
    one_value_in_the_guide,
    in_model_and_guide,
    impossible_values,
    nothing_enumerated,
)
