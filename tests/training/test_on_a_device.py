"""Training on another device than the CPU; see :mod:`tests.second_device`."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, fx

import sgc
import sgc.errors
import sgc.infer
from sgc.emit.backends.registry import registered
from sgc.emit.inductor.compile_graph import Runner
from tests.backends import RunGraphs
from tests.programs import switches_on
from tests.second_device import device, unavailable

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.usefixtures("second_device"),
]


def data() -> Tensor:
    return torch.tensor([-1.0, 0.5, 2.0], device=device())


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "Adam": (pyro.optim.Adam({"lr": 0.02}), lambda ps: torch.optim.Adam(ps, lr=0.02)),
    "SGD with momentum": (
        pyro.optim.SGD({"lr": 0.02, "momentum": 0.9}),
        lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9),
    ),
    "ClippedAdam": (pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.9}), None),
}


def trained(svi: Any, *args: Any, steps: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of some steps from a fresh start, and all that Pyro's store holds after them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    losses = [svi.step(*args) for _ in range(steps)]
    return losses, {name: tensor.detach().clone() for name, tensor in pyro.get_param_store()._params.items()}


def assert_same_training(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        assert ours[1][name].device == value.device == device()
        torch.testing.assert_close(ours[1][name], value)


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whole_steps_are_those_of_pyro(name: str, rewritten: bool, run_graphs: Run) -> None:
    """The graph of a step runs as it is here, or as Inductor is given it: neither Inductor nor CUDA is."""
    built = run_graphs(rewritten=rewritten)
    model, guide = switches_on()
    theirs = trained(
        pyro.infer.SVI(model, guide, copy.deepcopy(OPTIMIZERS[name][0]), pyro.infer.TraceGraph_ELBO()), data()
    )
    for optimizer in OPTIMIZERS[name]:
        if optimizer is not None:
            svi = sgc.SVI(
                model, guide, copy.deepcopy(optimizer), sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch")
            )
            assert_same_training(trained(svi, data()), theirs)
    assert built
    assert {where for module in built for where in inputs_of(module)} == {device()}


def inputs_of(module: fx.GraphModule) -> list[torch.device]:
    """Where the inputs of a graph are."""
    return [node.meta["val"].device for node in module.graph.nodes if node.op == "placeholder"]


class OnTheDevice(RunGraphs):
    """Graphs run on the device instead of being compiled, on tensors that are where those of the examples are."""

    def runner(self, module: fx.GraphModule, examples: list[Tensor]) -> Runner:
        run = super().runner(module, examples)

        def checked(*arguments: Tensor) -> Any:
            assert [t.device for t in arguments] == [t.device for t in examples] == inputs_of(module)
            return run(*arguments)

        return checked


Run = Callable[..., list[fx.GraphModule]]


@pytest.fixture
def run_graphs() -> Iterator[Run]:
    """Lets graphs run on the device instead of compiling them; gives the list of those that are built from then on."""
    with ExitStack() as stack:

        def begin(*, rewritten: bool) -> list[fx.GraphModule]:
            backend = OnTheDevice(rewritten=rewritten)
            stack.enter_context(registered(backend))
            return backend.graphs

        yield begin


def test_step_in_python() -> None:
    model, guide = switches_on()
    theirs = trained(pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceGraph_ELBO()), data())
    svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), sgc.infer.TraceGraph_ELBO(backend="eager"))
    assert_same_training(trained(svi, data()), theirs)


def test_data_on_the_cpu_that_the_program_moves(run_graphs: Run) -> None:
    """The first input is on the CPU, the loss and the flag of a NaN are on the device."""
    run_graphs(rewritten=False)
    model, guide = switches_on(device())
    theirs = trained(
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceGraph_ELBO()), data().cpu()
    )
    svi = sgc.SVI(
        model, guide, pyro.optim.Adam({"lr": 0.02}), sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch")
    )
    assert_same_training(trained(svi, data().cpu()), theirs)


def test_run_stops_at_a_nan_with_the_random_state_of_its_step(run_graphs: Run) -> None:
    run_graphs(rewritten=False)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros((), device=device()), 1.0))
        pyro.sample("x", dist.Normal(torch.log(z + 1.0), 1.0), obs=torch.zeros((), device=device()))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros((), device=device())), 1.0))

    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch", validate=False)
    svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), elbo)
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning), pytest.raises(sgc.errors.NanLossError) as stopped:
        svi.initialize()
        warnings.warn("none of the run's own is needed", UserWarning, stacklevel=1)
        svi.run(200)
    taken = int(re.search(r"step (\d+)", str(stopped.value)).group(1)) - 1  # type: ignore[union-attr]
    state = torch.other.get_rng_state()  # type: ignore[attr-defined]
    pyro.set_rng_seed(0)
    for _ in range(taken):
        torch.randn((), device=device())
    assert torch.equal(torch.other.get_rng_state(), state)  # type: ignore[attr-defined]


@pytest.mark.parametrize("good", [0, 1, 15, 16, 37])
def test_minibatches_are_looked_at_in_groups(good: int, run_graphs: Run) -> None:
    """What is sent after a step that has halted changes nothing, and what is drawn for it is taken back."""
    run_graphs(rewritten=False)
    batches = [data() + 0.1 * number for number in range(40)]

    def started() -> Any:
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch", validate=False)
        svi = sgc.SVI(*switches_on(), pyro.optim.Adam({"lr": 0.02}), elbo)
        svi.run(batches[:2])  # the first step is taken in Python
        return svi

    def state() -> list[Tensor]:
        held = [tensor.detach().clone() for tensor in pyro.get_param_store()._params.values()]
        return [*held, torch.other.get_rng_state()]  # type: ignore[attr-defined]

    svi = started()
    losses, expected = svi.run(batches[:good]).losses, state()
    rest = svi.run(batches[good:]).losses
    svi = started()
    with pytest.raises(sgc.errors.NanLossError, match=f"step {good + 1} "):
        svi.run([*batches[:good], batches[good] * math.nan, *batches[good:]])
    assert torch.equal(svi.result.losses, losses)
    assert all(map(torch.equal, state(), expected))
    assert torch.equal(svi.run(batches[good:]).losses, rest)


def test_resumes_from_a_checkpoint() -> None:
    model, guide = switches_on()

    def fresh() -> Any:
        pyro.clear_param_store()
        return sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), sgc.infer.TraceGraph_ELBO(backend="eager"))

    svi = fresh()
    svi.run(3, data())
    saved = svi.state_dict()
    expected = svi.run(3, data()).losses
    # torch.load(path, map_location=...) moves what must be on the CPU, too.
    saved["random"]["torch"] = saved["random"]["torch"].to(device())
    saved["random"]["other"] = [state.to(device()) for state in saved["random"]["other"]]
    svi = fresh()
    svi.initialize(data())
    svi.load_state_dict(saved)
    assert torch.equal(svi.run(3, data()).losses, expected)


def test_parameters_on_two_devices(run_graphs: Run) -> None:
    """Each keeps its gradient and its optimizer's state where it is; the optimizer then runs in Python."""
    run_graphs(rewritten=False)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, device=device()), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + pyro.param("shift", torch.zeros(3, device=device())), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        mean = pyro.param("mean", torch.zeros(3)).to(device())
        pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))

    theirs = trained(pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceGraph_ELBO()), data())
    svi = sgc.SVI(
        model, guide, pyro.optim.Adam({"lr": 0.02}), sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch")
    )
    with pytest.warns(sgc.errors.StandInWarning, match="same device|different devices"):
        ours = trained(svi, data())
    torch.testing.assert_close(ours, theirs)
