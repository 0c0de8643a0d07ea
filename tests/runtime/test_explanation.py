"""What ``loss_module.explain()`` says, and that it agrees with the graph."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.errors import SgcError
from sgc.runtime.inspection.explanation import Explanation
from tests.programs import Pair, discrete_chain

SEEN = torch.tensor([0.1, 0.9, -0.4])


def closing_over_data() -> Pair:
    buffer = torch.tensor(2.0)

    def model(steps: int) -> None:
        total = torch.tensor(0.0)
        for step in range(steps):
            total = total + pyro.sample(f"step_{step}", dist.Normal(0.0, buffer))
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("turn", dist.VonMises(z, 1.0), obs=SEEN)

    def guide(steps: int) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        for step in range(steps):
            infer = {"estimator": "score function"} if step == 0 else {}
            pyro.sample(f"step_{step}", dist.Normal(loc, 1.0), infer=infer)
        with pyro.plate("rows", 3):
            options = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.zeros(3))), infer=options)

    return model, guide


def rows(explanation: Explanation, title: str) -> dict[str, tuple[str, ...]]:
    """The rows of a table by their first cells; none if there is no such table."""
    return {row[0]: row for table in explanation.tables if table.title.startswith(title) for row in table.rows}


@pytest.fixture
def loss_module() -> sgc.LossModule:
    return sgc.compile(*closing_over_data(), backend="torchscript", validate=False)


def test_each_latent_site_is_explained(loss_module: sgc.LossModule) -> None:
    explanation = loss_module.initialize(6).explain()
    sites = rows(explanation, "latent sites")
    assert set(sites) == {"step_0", "step_i, i = 1 … 5", "z"}
    assert sites["z"][1:7] == (
        *("Bernoulli [3]", "rows: 3", "score function", "a Bernoulli has no reparameterised sample"),
        *(f"{len(loss_module.graph.downstream_costs('z'))} of 15", "decaying average (beta 0.9)"),
    )
    assert "pyro.sample(" in sites["z"][7]
    assert sites["step_0"][3:5] == ("score function", "it is asked for") and sites["step_0"][6] == "none"
    assert sites["step_i, i = 1 … 5"][3:5] == ("pathwise", "a Normal has a reparameterised sample")


def test_tensors_guards_and_versions_are_listed(loss_module: sgc.LossModule) -> None:
    loss_module(5).backward()
    loss_module(6).backward()
    loss_module(6).backward()
    explanation = loss_module.explain()
    assert set(rows(explanation, "parameters")) == {"param loc", "param q"}
    constants = rows(explanation, "buffers, and constants")
    (data,) = [row for row in constants.values() if row[1] == "float32[3]"]
    assert data[2] == "12" and data[3].startswith("data of 'turn': pass it")
    (other,) = [row for row in constants.values() if row[1] == "float32[]"]
    assert other[2:] == ("4", "")
    assert [*rows(explanation, "what the latest specialization relies on")] == loss_module.guards().splitlines()
    versions = rows(explanation, "specializations")
    assert versions["1"][1:] == ("the first call", "1")
    assert "5" in versions["2"][1] and "6" in versions["2"][1] and versions["2"][2] == "2"
    assert "functionalise" in str(explanation) and "passes: loss and gradients, torchscript" in str(explanation)


def test_it_is_text_and_html(loss_module: sgc.LossModule) -> None:
    explanation = loss_module.initialize(6).explain()
    bundle = explanation._repr_mimebundle_()
    assert bundle["text/plain"] == str(explanation)
    assert bundle["text/html"].count("<table") == len(explanation.tables)
    assert "passes" not in str(explanation)  # nothing is compiled yet


def test_the_downstream_costs_of_folded_sites_are_a_range() -> None:
    explanation = sgc.compile(*discrete_chain(8), backend="eager").initialize().explain()
    assert rows(explanation, "latent sites")["z_t, t = 0 … 7"][5] == "3 to 24 of 24"


def test_sites_that_are_enumerated_are_no_reparameterised_ones() -> None:
    """In the model alone a site has no score function, whatever its distribution."""

    def model(x: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.3))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + on, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.1))
        pyro.sample("on", dist.Bernoulli(logits=logit), infer={"enumerate": "parallel"})

    elbo = sgc.infer.TraceEnum_ELBO(backend="eager", max_plate_nesting=1)
    elbo.loss_and_grads(model, guide, SEEN)
    sites = rows(elbo.compiled(model, guide).explain(), "latent sites")
    assert {sites[name][3:5] for name in ("on", "z")} == {("enumerated", "infer['enumerate'] asks for it")}


def test_samplers_in_python_are_told() -> None:
    def model(x: Tensor) -> None:
        turn = pyro.sample("turn", dist.VonMises(0.0, 1.0))
        pyro.sample("x", dist.Normal(turn, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("turn", dist.VonMises(pyro.param("loc", torch.tensor(0.1)), 1.0))

    explanation = sgc.compile(model, guide, backend="eager").initialize(torch.tensor(0.3)).explain()
    assert rows(explanation, "sampled or scored by a call of Python")["turn"][1] == "VonMises"


def test_nothing_is_explained_before_a_call(loss_module: sgc.LossModule) -> None:
    with pytest.raises(SgcError, match="nothing has been captured yet"):
        loss_module.explain()
