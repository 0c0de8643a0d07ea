"""What Pyro's Jit class refuses or gets wrong, and ours does not."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc.infer
from sgc.errors import RespecializationWarning

DECAYING = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}}


def as_pyro(program: Any, *calls: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """One instance of each class, called in turn: equal losses and gradients at every call."""
    results = []
    for elbo in (pyro.infer.TraceGraph_ELBO(), sgc.infer.JitTraceGraph_ELBO(jit_options={"check_trace": True})):
        pyro.clear_param_store()
        pyro.infer.TraceGraph_ELBO().loss(*program, *calls[0][0], **calls[0][1])
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", RespecializationWarning)
            for number, (args, kwargs) in enumerate(calls):
                pyro.set_rng_seed(number)
                for leaf in leaves().values():
                    leaf.grad = None
                loss = elbo.loss_and_grads(*program, *args, **kwargs)
                found.append((loss, {k: p.grad.clone() for k, p in leaves().items() if p.grad is not None}))
        results.append(found)
    for (theirs, their_gradients), (ours, our_gradients) in zip(*results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert our_gradients.keys() == their_gradients.keys()
        for name in our_gradients:
            torch.testing.assert_close(our_gradients[name], their_gradients[name])


def leaves() -> dict[str, Tensor]:
    return {k: p for k, p in pyro.get_param_store().named_parameters() if not k.startswith("__baseline")}


def test_keywords_and_arguments_that_are_no_tensors() -> None:
    def model(x: Tensor, scale: float = 1.0, *, name: str = "x", parts: tuple[int, ...] = ()) -> None:
        z = pyro.sample("z", dist.Normal(0.0, scale + len(parts)))
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.Normal(z, scale), obs=x)

    def guide(x: Tensor, scale: float = 1.0, **options: Any) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), scale))

    x = torch.tensor([0.5, 1.5])
    as_pyro(
        (model, guide),
        ((x,), {}),
        ((x, 2.0), {}),
        ((x,), {"scale": 3.0, "name": "y"}),
        ((x,), {"parts": (1, 2)}),
        ((x[:1],), {}),
        ((x,), {}),
    )


def test_score_function_gradients() -> None:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Poisson(k + 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.1, 0.2, 0.3]))))

    as_pyro((model, guide), *[((torch.tensor([1.0, 4.0]),), {})] * 4)


def test_modules_that_are_only_closed_over() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x).squeeze(-1), 1.0))

    as_pyro((model, guide), ((torch.randn(3, 2),), {}), ((torch.randn(5, 2),), {}))


def test_decaying_averages_and_a_ragged_last_batch() -> None:
    """Each batch shape has an average of its own; the first keeps Pyro's name (Pyro fails at the second shape)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", 10, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Bernoulli(q), infer=DECAYING)

    with pytest.raises(Exception, match=r"Expected|size|shape"):
        elbo = pyro.infer.TraceGraph_ELBO()
        for rows in (4, 3):
            elbo.loss_and_grads(model, guide, torch.randn(rows))
    pyro.clear_param_store()
    svi = sgc.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}))
    for rows in (4, 4, 3, 4, 3):
        svi.step(torch.randn(rows))
    averages = {k: tuple(v.shape) for k, v in pyro.get_param_store().items() if k.startswith("__baseline")}
    assert sorted(averages.values()) == [(3,), (4,)]
    assert averages["__baseline_avg_downstream_cost_z"] == (4,)
    assert len(svi.optim.optim_objs) == 1


def test_train_and_eval_mode() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(network(x).sum() + z, 1.0), obs=torch.tensor(0.5))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    elbo, x = sgc.infer.JitTraceGraph_ELBO(), torch.randn(2)
    for training in (True, False, True):
        network.train(training)
        pyro.set_rng_seed(0)
        ours = elbo.loss(model, guide, x)
        pyro.set_rng_seed(0)
        assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide, x), rel=1e-6)
