"""Who decides whether a program is checked, and what a checked program looks like."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, fx

import sgc
import sgc.infer
from tests.validation.programs import CASES, latent, t


def checks(module: sgc.LossModule) -> list[str]:
    return [str(check) for check in module.specializations[-1].checks]


def results(module: fx.GraphModule) -> int:
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    return len(output.args[0])


def test_off_means_that_nothing_is_computed() -> None:
    case = CASES["Bernoulli probs"]
    programs = []
    for validate, switch in ((False, True), (None, False)):
        with pyro.validation_enabled(switch):
            module = sgc.compile(case.model, case.guide, backend="eager", validate=validate)
            module(*case.good)
            programs.append(module.code)
            assert checks(module) == [] and results(module.module) == 2
            assert module(*case.bad).isfinite()
            assert len(module.specializations) == 1
    assert programs[0] == programs[1]
    module = sgc.compile(case.model, case.guide, backend="eager").initialize(*case.good)
    assert len(programs[0].splitlines()) < len(module.code.splitlines()) and results(module.module) == 3


def test_pyros_switch_is_followed_at_each_call() -> None:
    case = CASES["Bernoulli probs"]
    module = sgc.compile(case.model, case.guide, backend="eager")
    for _ in range(2):
        module(*case.good)
        with pytest.raises(ValueError, match="probs"):
            module(*case.bad)
        with pyro.validation_enabled(False):
            assert module(*case.bad).isfinite()
    assert len(module.specializations) == 2
    assert "Pyro's validation on" in module.guards() or "Pyro's validation off" in module.guards()


def test_on_whatever_pyro_says() -> None:
    case = CASES["Bernoulli probs"]
    with pyro.validation_enabled(False):
        module = sgc.compile(case.model, case.guide, backend="eager", validate=True)
        with pytest.raises(ValueError, match="probs"):
            module(*case.bad)
        module(*case.good)
        with pytest.raises(ValueError, match="probs"):
            module(*case.bad)
        assert not pyro.distributions.is_validation_enabled()
    module(*case.good)
    assert len(module.specializations) == 1


def test_a_site_may_say_so_itself() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("loose", dist.Bernoulli(torch.tensor(0.5), validate_args=False), obs=x)

    module = sgc.compile(model, lambda x: latent(), backend="eager")
    module(t(1.0))
    assert module(t(3.0)).isfinite()
    assert not any("loose" in text for text in checks(module))
    case = CASES["validate_args at the site"]
    with pyro.validation_enabled(False):
        module = sgc.compile(case.model, case.guide, backend="eager")
        module(*case.good)
        assert checks(module) == ["the value in the support of Bernoulli (Boolean) at site 'strict'"]
        with pytest.raises(ValueError, match="strict"):
            module(*case.bad)


def test_what_follows_from_literals_is_not_checked_again() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), obs=torch.tensor([0.5, 0.1]))

    module = sgc.compile(model, latent, backend="eager").initialize()
    assert checks(module) == [
        f"loc of Normal (Real) at {module.graph.payload('z').source}",
        "the value in the support of Normal (Real) at site 'z'",
    ]


def test_the_graph_is_the_same() -> None:
    for case in CASES.values():
        graphs = [sgc.compile(case.model, case.guide, validate=v).initialize(*case.good).graph for v in (True, False)]
        assert str(graphs[0]) == str(graphs[1])
        assert set(graphs[0].edges) == set(graphs[1].edges)


def test_a_wrong_option() -> None:
    with pytest.raises(sgc.errors.ArgumentError, match="validate"):
        sgc.compile(CASES["plates"].model, latent, validate="yes")  # type: ignore[arg-type]


def test_values_and_gradients_are_those_of_an_unchecked_program() -> None:
    for name in ("Bernoulli probs", "MVN covariance", "subsampled plate", "zero-inflated"):
        case, found = CASES[name], []
        for validate in (True, False):
            pyro.clear_param_store()
            module = sgc.compile(case.model, case.guide, backend="eager", validate=validate).initialize(*case.good)
            pyro.set_rng_seed(1)
            loss = module(*case.good)
            loss.backward()
            found.append((loss.item(), pyro.param("loc").grad.item(), torch.get_rng_state().tolist()))
        assert found[0] == found[1]
