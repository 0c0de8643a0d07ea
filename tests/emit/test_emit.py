"""The emitted modules: what they compute, forced samples, backends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.emit.backends.registry import build
from sgc.emit.differentiate import differentiate, trace, without_gradient
from sgc.emit.emitter import emit_surrogate
from sgc.errors import BackendError
from sgc.graph.effects import is_random
from tests.programs import local_switches

X = torch.tensor([0.1, 0.9, -0.4])


@pytest.fixture
def module() -> sgc.LossModule:
    return sgc.compile(*local_switches(), backend="eager").initialize(X)


def tensors_of(module: sgc.LossModule) -> list[Tensor]:
    owners = module.specializations[-1].owners.values()
    return [X if (tensor := owner.fetch()) is None else tensor for owner in owners]


def test_the_printed_program_is_the_program(module: sgc.LossModule) -> None:
    scope = {"torch": torch, "device": torch.device, "inf": float("inf")}
    exec(module.code, scope)
    pyro.set_rng_seed(3)
    printed = scope["forward"](module.module, *tensors_of(module))  # type: ignore[operator]
    pyro.set_rng_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(printed, module.module(*tensors_of(module)), strict=True))


def test_differentiated_module_gives_loss_and_gradients_in_one_forward(module: sgc.LossModule) -> None:
    tensors = tensors_of(module)
    wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    made = differentiate(module.module, tensors, wanted)
    assert made.gradient_of == tuple(wanted)
    with torch.no_grad():
        pyro.set_rng_seed(3)
        loss, *gradients, valid = made.module(*tensors)
    pyro.set_rng_seed(3)
    expected, surrogate, _ = module.module(*tensors)
    theirs = torch.autograd.grad(surrogate, [tensors[i] for i in wanted])
    assert torch.equal(loss, expected) and valid
    assert all(torch.equal(a, b) for a, b in zip(gradients, theirs, strict=True))


def test_the_same_random_operators_in_the_same_order_at_every_stage(module: sgc.LossModule) -> None:
    tensors = tensors_of(module)
    program = module.graph.program
    assert program is not None
    drawn = [node.target for node in program.module.graph.nodes if is_random(node)]
    assert len(drawn) == 2
    made = differentiate(module.module, tensors, [])
    alone = without_gradient(emit_surrogate(module.graph, loss_only=True).module, tensors)
    for graph_module in (module.module, made.module, alone.module):
        assert [node.target for node in graph_module.graph.nodes if is_random(node)] == drawn


def test_forced_samples(module: sgc.LossModule) -> None:
    emitted = emit_surrogate(module.graph, forced=("z", "loc")).module
    z, loc = torch.tensor([1.0, 0.0, 1.0]), torch.tensor(0.2)
    first = emitted(*tensors_of(module), z, loc)[0]
    assert torch.equal(first, emitted(*tensors_of(module), z, loc)[0])  # nothing is left to chance
    q = pyro.param("q").detach()
    expected = (
        dist.Normal(0.0, 1.0).log_prob(loc)
        + dist.Bernoulli(0.4).log_prob(z).sum()
        + dist.Normal(loc + z, 0.5).log_prob(X).sum()
        - dist.Normal(pyro.param("loc_loc").detach(), 0.3).log_prob(loc)
        - dist.Bernoulli(q).log_prob(z).sum()
    )
    assert torch.allclose(first, -expected)


@pytest.mark.inductor
def test_fast_random_numbers_have_the_right_law() -> None:
    """rng="fast" draws other numbers than eager torch: the mean loss over many draws is the same."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.full((4000,), 0.3)).to_event(1))
        n = pyro.sample("n", dist.Normal(torch.zeros(4000), 1.0).to_event(1))
        pyro.factor("count", 1e6 * z.mean() + 0.0 * n.sum())
        pyro.factor("moments", 1e3 * (n.mean() + n.pow(2).mean()))

    def guide() -> None:
        probs = pyro.param("probs", torch.full((4000,), 0.3))
        pyro.sample("z", dist.Bernoulli(probs).to_event(1))
        pyro.sample("n", dist.Normal(torch.zeros(4000), 1.0).to_event(1))

    module = sgc.compile(model, guide, backend="inductor", rng="fast")
    pyro.set_rng_seed(0)
    with torch.no_grad():
        losses = torch.stack([module() for _ in range(20)])
    # 80000 draws: z's mean has standard deviation 0.0016, n's mean 0.0035, n's second moment 0.005
    assert abs(losses.mean() + 1e6 * 0.3 + 1e3) < 5 * (1e6 * 0.0017)
    assert len(losses.unique()) == 20
    pyro.set_rng_seed(0)
    with torch.no_grad():
        assert torch.equal(module(), losses[0])  # reproducible under a seed


@pytest.mark.inductor
def test_a_sum_into_one_row_of_an_expanded_tensor_stays_in_that_row() -> None:
    """Inductor copies the tensor with its strides: a write into one row of the copy is one into all."""

    def scattered(row: Tensor, index: Tensor, values: Tensor) -> list[Tensor]:
        rows = (2 * row).expand(4, 2)
        return [torch.ops.aten.index_put(rows, [torch.arange(4)[:, None], index], values, accumulate=True) + 1]

    inputs = [torch.randn(2), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]), torch.randn(4, 2)]
    (expected,) = scattered(*inputs)
    (found,) = build(trace(scattered, inputs), inputs, "inductor", "torch").run(*inputs)
    torch.testing.assert_close(found, expected)


_WITHOUT_A_COMPILER = """
import torch, sgc
from tests.programs import local_switches
try:
    sgc.compile(*local_switches())(torch.zeros(3))
except sgc.errors.BackendError as error:
    print(error)
"""


@pytest.mark.inductor
def test_without_a_compiler_the_error_says_what_to_do(tmp_path: Path) -> None:
    environment = {
        "PATH": str(tmp_path),  # where there is no compiler
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_A_COMPILER], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "needs a C++ compiler" in run.stdout and "apt-get install g++" in run.stdout
    assert 'backend="eager"' in run.stdout


def test_unknown_failures_of_inductor_are_explained(monkeypatch: pytest.MonkeyPatch, module: sgc.LossModule) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("something inside")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    with pytest.raises(BackendError, match=r"something inside(.|\n)*backend=\"eager\""):
        build(module.module, tensors_of(module), "inductor", "fast")


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"proj_size": 1}], ids=str)
@pytest.mark.parametrize("gradient", [True, False])
def test_lstms(options: dict[str, int], gradient: bool) -> None:
    lstm = nn.LSTM(2, 3, **options)  # type: ignore[arg-type]

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(lstm(z * x)[0].sum(), 1.0), obs=torch.tensor(0.7))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    x = torch.linspace(-1, 1, 8).reshape(4, 2)
    lstm.requires_grad_(gradient)
    pyro.set_rng_seed(0)
    expected = pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, x)
    theirs = [parameter.grad for parameter in lstm.parameters()]
    lstm.zero_grad()
    compiled = sgc.compile(model, guide, backend="eager").initialize(x)
    pyro.set_rng_seed(0)
    with torch.set_grad_enabled(gradient):
        loss = compiled(x)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    if gradient:
        loss.backward()
        for parameter, their in zip(lstm.parameters(), theirs, strict=True):
            torch.testing.assert_close(parameter.grad, their)
