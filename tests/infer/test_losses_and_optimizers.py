"""What an SVI is given: losses that are not compiled are said to be, optimizers of a wrong kind are refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch

import sgc
import sgc.infer
from sgc.errors import ArgumentError, OptimizerError, StandInWarning
from tests.programs import local_switches

DATA = torch.tensor([0.3, -1.2, 0.8])


class Halved(pyro.infer.Trace_ELBO):
    """A user's own."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return 0.5 * super().loss_and_grads(model, guide, *args, **kwargs)


class Penalised(sgc.infer.TraceGraph_ELBO):
    """A user's own, derived from the compiled one."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().differentiable_loss(model, guide, *args, **kwargs) + 100.0


def by_hand(model: Any, guide: Any, *args: Any) -> torch.Tensor:
    loss: torch.Tensor = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, *args)
    return loss


def replaced() -> sgc.infer.TraceGraph_ELBO:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    elbo.loss_and_grads = pyro.infer.Trace_ELBO().loss_and_grads  # type: ignore[method-assign]
    return elbo


LOSSES: dict[str, tuple[Callable[[], Any], str]] = {
    "Trace_ELBO": (pyro.infer.Trace_ELBO, "is pyro.infer.trace_elbo.Trace_ELBO, which sgc does not compile"),
    "Pyro's TraceGraph_ELBO": (pyro.infer.TraceGraph_ELBO, "is pyro.infer.tracegraph_elbo.TraceGraph_ELBO, which"),
    "TraceEnum_ELBO": (pyro.infer.TraceEnum_ELBO, "TraceEnum_ELBO, which sgc does not compile"),
    "a subclass of Pyro's": (Halved, f"is {__name__}.Halved, which sgc does not compile"),
    "a subclass of sgc's": (lambda: Penalised(backend="eager"), "Penalised has its own differentiable_loss"),
    "a method on the object": (replaced, "TraceGraph_ELBO has its own loss_and_grads"),
    "a function": (lambda: by_hand, f"is {__name__}.by_hand, which sgc does not compile"),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.filterwarnings("ignore:No score:UserWarning")
def test_a_loss_that_is_not_compiled_runs_as_in_pyro_and_one_warning_says_so(kind: str) -> None:
    make, text = LOSSES[kind]
    model, guide = local_switches()
    pyro.set_rng_seed(2)
    theirs = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), make())
    expected = [theirs.step(DATA) for _ in range(3)]
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), make())
        losses = [svi.step(DATA), *svi.run(2, DATA).losses.tolist()]
    (said,) = [str(warning.message) for warning in caught if warning.category is StandInWarning]
    assert text in said and "pyro.infer.SVI" in said
    assert [warning.filename for warning in caught if warning.category is StandInWarning] == [__file__]
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [sgc.infer.TraceGraph_ELBO, sgc.infer.JitTraceGraph_ELBO, lambda: None])
def test_sgcs_own_losses_are_taken_without_a_word(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sgc.SVI(*local_switches(), torch.optim.Adam, make()).loss_module is not None


def test_what_a_compiled_elbo_would_not_call_is_refused() -> None:
    class Other(sgc.infer.TraceGraph_ELBO):
        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            return super()._get_trace(model, guide, args, kwargs)

    with pytest.raises(ArgumentError, match="Other overrides _get_trace, which a compiled ELBO does not call"):
        Other()


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (sgc.infer.TraceGraph_ELBO, r"not the class TraceGraph_ELBO\n.*make one: TraceGraph_ELBO\(\)"),
        (pyro.infer.Trace_ELBO, r"not the class Trace_ELBO\n.*make one: Trace_ELBO\(\)"),
        ("elbo", r"not 'elbo'\n.*pass sgc.infer.TraceGraph_ELBO\(\)"),
        (int, r"not the class int\n.*pass sgc.infer.TraceGraph_ELBO\(\)"),
    ],
)
def test_what_is_no_loss(loss: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        sgc.SVI(*local_switches(), pyro.optim.Adam({"lr": 0.1}), loss)


def schedule() -> Any:
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 1)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a name": (lambda: "adam", "not 'adam'\n"),
    "nothing": (lambda: None, "not None\n"),
    "options": (lambda: {"lr": 0.1}, "not a dict\n"),
    "parameters": (lambda: [torch.zeros(1)], "not a list\n"),
    "Pyro's constructor": (
        lambda: pyro.optim.Adam,
        r"pyro.optim.Adam itself makes .*\n.*call it: pyro.optim.Adam",
    ),
    "Pyro's class": (lambda: pyro.optim.PyroOptim, "pyro.optim.PyroOptim itself makes one of Pyro's"),
    "one of Pyro's own": (lambda: pyro.optim.ClippedAdam, "pyro.optim.ClippedAdam itself makes one of Pyro's"),
    "a schedule of torch's": (schedule, r"not torch's scheduler StepLR\n.*pass the optimizer .* pyro.optim.StepLR\("),
}


@pytest.mark.parametrize("loss", [sgc.infer.TraceGraph_ELBO, pyro.infer.Trace_ELBO])
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore::sgc.errors.StandInWarning")
def test_an_optimizer_of_a_wrong_kind(kind: str, loss: Any) -> None:
    make, text = WRONG[kind]
    with pytest.raises(OptimizerError, match=text) as caught:
        sgc.SVI(*local_switches(), make(), loss())
    assert isinstance(caught.value, ValueError) and "Optimizer should be an instance" in str(caught.value)  # as in Pyro


@pytest.mark.parametrize(
    ("optim", "text"),
    [
        (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), "not torch's SGD"),
        (torch.optim.Adam, "not the class Adam"),
        (lambda parameters: torch.optim.Adam(parameters), "not a function"),
    ],
)
@pytest.mark.filterwarnings("ignore::sgc.errors.StandInWarning")
def test_pyros_svi_takes_pyros_optimizers_alone(optim: Any, text: str) -> None:
    text += ": pyro.infer.trace_elbo.Trace_ELBO is not compiled"
    with pytest.raises(OptimizerError, match=text):
        sgc.SVI(*local_switches(), optim, pyro.infer.Trace_ELBO())
    svi = sgc.SVI(*local_switches(), pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    kept = svi.optim
    with pytest.raises(OptimizerError, match=text):
        svi.optim = optim
    assert svi.optim is kept
    svi.step(DATA)


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda p: pyro.optim.Adam({"lr": 0.1}), "an optimizer of pyro.optim\n.*pass the pyro.optim optimizer itself"),
        (lambda p: None, "returned None\n.*return a torch.optim.Optimizer"),
        (lambda p: torch.optim.Adam, "returned the class Adam\n.*return a torch.optim.Optimizer"),
    ],
)
def test_what_a_factory_returns_is_named(factory: Any, text: str) -> None:
    with pytest.raises(OptimizerError, match=text):
        sgc.SVI(*local_switches(), factory, sgc.infer.TraceGraph_ELBO(backend="eager")).step(DATA)


def test_an_optimizer_that_is_set_later_is_looked_at_too() -> None:
    svi = sgc.SVI(*local_switches(), torch.optim.Adam, sgc.infer.TraceGraph_ELBO(backend="eager"))
    before = svi.step(DATA)
    with pytest.raises(OptimizerError, match="not 'adam'"):
        svi.optim = "adam"
    assert svi.optim is torch.optim.Adam and svi.step(DATA) != before
