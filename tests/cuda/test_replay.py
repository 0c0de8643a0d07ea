"""Compiled programs as CUDA graphs: the same numbers as eager Pyro, whatever becomes of the tensors in between."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer
from sgc.emit.inductor.cuda_graphs import ReplayedCall, ReplayedStep
from sgc.errors import NanLossError, StandInWarning
from tests.programs import local_switches, switches_on

pytestmark = [pytest.mark.inductor, pytest.mark.usefixtures("tensors_on_the_gpu")]

STEPS = 40


def data() -> Tensor:
    return torch.tensor([-1.0, 0.5, 2.0], device="cuda")


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def fresh(program: Any = None, optim: Any = adam, seed: int = 3) -> sgc.SVI:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return sgc.SVI(*(program or switches_on()), optim, sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch"))


def pyros(calls: list[Tensor], program: Any = None) -> tuple[list[float], dict[str, Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    svi = pyro.infer.SVI(*(program or switches_on()), pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceGraph_ELBO())
    return [svi.step(call) for call in calls], store()


def store() -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in pyro.get_param_store()._params.items()}


def replayed(svi: sgc.SVI) -> ReplayedStep:
    (bound,) = svi.stepper.compiled.bound
    assert bound._call is not None
    found = bound._call._call
    assert isinstance(found, ReplayedStep)
    assert found._graphs and not found._given_up
    return found


def assert_same(losses: Any, theirs: tuple[list[float], dict[str, Tensor]]) -> None:
    torch.testing.assert_close(torch.as_tensor(losses), torch.tensor(theirs[0]))
    found = store()
    assert found.keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        torch.testing.assert_close(found[name], value)


def test_steps() -> None:
    theirs = pyros([data()] * STEPS)
    after = torch.cuda.get_rng_state()
    svi, x = fresh(), data()
    assert_same([svi.step(x) for _ in range(STEPS)], theirs)
    assert list(replayed(svi)._graphs) == [1]
    assert torch.equal(torch.cuda.get_rng_state(), after)


def test_a_run_takes_many_steps_in_a_graph() -> None:
    theirs = pyros([data()] * 300)
    svi, x = fresh(), data()
    assert_same(svi.run(300, x).losses, theirs)
    assert max(replayed(svi)._graphs) > 1


def test_minibatches_that_lie_elsewhere() -> None:
    batches = [data() + 0.1 * number for number in range(STEPS)]
    theirs = pyros(batches)
    svi = fresh()
    assert_same(svi.run(batches).losses, theirs)
    replayed(svi)


def test_a_batch_that_is_changed_where_it_lies() -> None:
    batches = [data() + 0.1 * number for number in range(10)]
    theirs = pyros(batches)
    svi, x = fresh(), data()
    losses = []
    for batch in batches:
        x.data.copy_(batch)
        losses.append(svi.step(x))
    assert_same(losses, theirs)
    assert replayed(svi)._places._copies == {}


def test_inputs_of_any_strides() -> None:
    def model(x: Tensor) -> None:
        rows, columns = pyro.plate("rows", 4, dim=-1), pyro.plate("columns", 3, dim=-2)
        with rows:
            z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.4, device="cuda")))
        with rows, columns:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(4, device="cuda"))
        with pyro.plate("rows", 4):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    def batches() -> list[Tensor]:
        wide = torch.arange(40.0, device="cuda")
        return [wide[3 * i : 3 * i + 3].unsqueeze(-1).expand(3, 4) for i in range(8)]

    theirs = pyros(batches(), (model, guide))
    svi = fresh((model, guide))
    assert_same(svi.run(batches()).losses, theirs)
    replayed(svi)


def test_a_nan_in_the_midst_of_minibatches() -> None:
    """It is found some steps later; what was sent meanwhile has changed nothing."""
    batches = [data() for _ in range(30)]
    svi = fresh()
    svi.run(batches[:12])
    expected, random = store(), torch.cuda.get_rng_state()
    batches[12] = batches[12] * math.nan
    svi = fresh()
    with pytest.raises((NanLossError, ValueError)):
        svi.run(batches)
    assert len(svi.result.losses) == 12
    assert torch.equal(torch.cuda.get_rng_state(), random)
    for name, value in store().items():
        assert torch.equal(value, expected[name])
    assert svi.run(batches[13:]).losses.isfinite().all()


def test_autograd_learns_of_what_is_written() -> None:
    svi, x = fresh(), data()
    for _ in range(5):
        svi.step(x)
    before = pyro.param("q").unconstrained()._version
    svi.step(x)
    assert pyro.param("q").unconstrained()._version > before


def test_a_checkpoint_resumes_to_the_last_bit() -> None:
    svi, x = fresh(), data()
    svi.run(20, x)
    kept = svi.state_dict()
    first = svi.run(20, x).losses
    svi.load_state_dict(kept)
    assert torch.equal(svi.run(20, x).losses, first)


# -- the loss module


def module_of(program: Any = None, **options: Any) -> sgc.LossModule:
    return sgc.compile(*(program or switches_on()), backend="inductor", rng="torch", **options)


def graph_of(module: sgc.LossModule) -> Any:
    (compiled,) = module.specializations[-1].compiled.values()
    assert isinstance(compiled.run, ReplayedCall)
    return compiled.run._graph


def test_losses_and_gradients() -> None:
    eager, x = sgc.compile(*switches_on(), backend="eager"), data()
    module = module_of()
    for number in range(6):
        x = data() + number if number % 3 else x
        found = []
        for each in (eager, module):
            pyro.set_rng_seed(number)
            each.initialize(x)
            each.zero_grad()
            for name in [name for name in pyro.get_param_store()._params if "baseline" in name]:
                pyro.get_param_store()._params[name].detach().zero_()
            loss = each(x)
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in each.parameters() if p.grad is not None)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert graph_of(module) is not None


def test_two_losses_before_their_gradients() -> None:
    module, x = module_of(local_switches()), data()
    for _ in range(3):
        module(x)
    assert graph_of(module) is not None
    pyro.set_rng_seed(0)
    one = torch.autograd.grad(module(x), list(module.parameters()))
    pyro.set_rng_seed(0)
    loss = module(x)
    kept = loss.detach().clone()
    other = module(x + 1)
    again = torch.autograd.grad(loss, list(module.parameters()))
    assert other != kept and torch.equal(loss.detach(), kept)
    for a, b in zip(one, again, strict=True):
        torch.testing.assert_close(a, b)


def test_buffers_are_written() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2).cuda()

    def model(x: Tensor) -> None:
        loc = norm(x).mean()
        z = pyro.sample("z", dist.Normal(torch.zeros((), device="cuda"), 1.0))
        pyro.sample("y", dist.Normal(z + loc, 1.0), obs=torch.zeros((), device="cuda"))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros((), device="cuda")), 1.0))

    xs = [torch.randn(4, 2, device="cuda") + number for number in range(6)]
    module = module_of((model, guide))
    for x in xs:
        module(x)
    assert graph_of(module) is not None
    found = norm.running_mean.clone()  # type: ignore[union-attr]
    norm.reset_running_stats()
    for x in xs:
        norm(x)
    torch.testing.assert_close(found, norm.running_mean)
    assert norm.num_batches_tracked == len(xs)


def test_parameters_that_are_made_anew() -> None:
    module, x = module_of(), data()
    for _ in range(4):
        module(x)
    pyro.clear_param_store()
    module.initialize(x)
    with torch.no_grad():
        pyro.get_param_store()._params["loc_loc"].fill_(5.0)
    pyro.set_rng_seed(1)
    ours = module(x)
    pyro.set_rng_seed(1)
    assert ours.item() == pytest.approx(sgc.compile(*switches_on(), backend="eager")(x).item(), rel=1e-5)


# -- what cannot be replayed, or must not be


def test_data_on_the_cpu_is_not_replayed() -> None:
    program = switches_on(torch.device("cuda"))
    theirs = pyros([data().cpu()] * 6, program)
    svi = fresh(program)
    assert_same([svi.step(data().cpu()) for _ in range(6)], theirs)
    assert "no CUDA graph: an input is on the cpu" in svi.profile()


def test_opaque_samplers_are_not_replayed() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.VonMises(torch.tensor(0.1, device="cuda"), 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3, device="cuda"))

    def guide() -> None:
        pyro.sample("z", dist.VonMises(pyro.param("loc", torch.tensor(0.2, device="cuda")), 3.0))

    svi = fresh((model, guide))
    losses = [svi.step() for _ in range(5)]
    assert "no CUDA graph: " in svi.profile() and "runs Python" in svi.profile()
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    theirs = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceGraph_ELBO())
    torch.testing.assert_close(torch.tensor(losses), torch.tensor([theirs.step() for _ in range(5)]))


def test_what_waits_for_the_gpu_is_said_to_be_launched_one_by_one() -> None:
    call = ReplayedCall(lambda x: [x * x.sum().item()], [], torch.device("cuda", 0))
    x = data()
    call(x)
    with pytest.warns(StandInWarning, match="no CUDA graph"):
        (found,) = call(x)
    assert torch.equal(found, x * x.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(call(x)[0], x * x.sum())
    torch.rand(3, device="cuda")  # the failed capture has left nothing behind
    test_steps()


# -- what would end all computation of this process on the GPU


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("rng", ["torch", "fast"])
@pytest.mark.parametrize("draw", ["Bernoulli", "Categorical", "Poisson"])
def test_what_is_not_valid_is_an_error_that_can_be_handled(draw: str, rng: Any, backend: Any) -> None:
    def drawn(p: Tensor) -> Any:
        return dist.Categorical(p.expand(2)) if draw == "Categorical" else getattr(dist, draw)(p)

    def model() -> None:
        z = pyro.sample("z", drawn(torch.tensor(0.4, device="cuda")))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.tensor(0.3, device="cuda"))

    def guide() -> None:
        pyro.sample("z", drawn(pyro.param("p", torch.tensor(0.4, device="cuda"))))

    svi = sgc.SVI(model, guide, adam, sgc.infer.TraceGraph_ELBO(backend=backend, rng=rng))
    svi.run(4)
    with torch.no_grad():
        pyro.get_param_store()._params["p"].fill_(math.nan)
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        svi.step()
        svi.step()
    with torch.no_grad():
        pyro.get_param_store()._params["p"].fill_(0.4)
    assert math.isfinite(svi.step())
