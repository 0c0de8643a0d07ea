"""The emitted module has one input for each average, whatever its site is called."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc

DECAYING = {"baseline": {"use_decaying_avg_baseline": True}}


@pytest.mark.parametrize("names", [("net.z", "net_z"), ("z", "Z"), ("a b", "a.b", "a-b")])
def test_sites_may_differ_in_a_dot_or_in_capitals_alone(names: tuple[str, ...]) -> None:
    def model(data: Tensor) -> None:
        values = [pyro.sample(name, dist.Bernoulli(0.5)) for name in names]
        pyro.sample("x", dist.Normal(sum(values), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.3))
        for name in names:
            pyro.sample(name, dist.Bernoulli(q), infer=DECAYING)

    module = sgc.compile(model, guide, backend="eager")
    for _ in range(3):
        module(torch.tensor(1.0)).backward()
    assert module.verify(torch.tensor(1.0))
    averages = {name: value for name, value in module.state_dict().items() if name.startswith("baselines.")}
    assert averages.keys() == {f"baselines.{name}" for name in names}
    assert all(value != 0 for value in averages.values())
