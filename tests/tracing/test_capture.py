"""What a capture follows that a plain trace would lose."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import Tensor, nn

import sgc
from sgc.errors import SideEffectWarning


def agree(model: Any, guide: Any, *args: Any, calls: int = 2) -> sgc.LossModule:
    """Loss and gradients equal Pyro's under one seed, call after call; returns the module."""
    module = sgc.compile(model, guide, backend="eager").initialize(*args)
    for seed in range(calls):
        results = []
        for run in (lambda: module(*args), None):
            pyro.set_rng_seed(seed)
            if run is not None:
                loss = run()
                loss.backward()
                value = loss.item()
            else:
                value = pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, *args)
            results.append((value, [None if p.grad is None else p.grad.clone() for p in module.parameters()]))
            module.zero_grad()
        (ours, our_gradients), (theirs, their_gradients) = results
        assert ours == pytest.approx(theirs, rel=1e-6)
        for mine, yours in zip(our_gradients, their_gradients, strict=True):
            assert (mine is None) == (yours is None)
            assert mine is None or yours is None or torch.allclose(mine, yours, rtol=1e-5)
    return module


def test_sequential_plate_over_a_random_subsample() -> None:
    data = torch.arange(10.0)

    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 10, subsample_size=3):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.5))
            pyro.sample("x_{}".format(i), dist.Normal(loc + z, 1.0), obs=data[i])  # noqa: UP032
            pyro.sample("y_%d" % i, dist.Normal(loc, 1.0), obs=data[i])  # noqa: UP031

    def guide(data: Tensor) -> None:
        q = pyro.param("q", torch.zeros(10))
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
        for i in pyro.plate("data", 10, subsample_size=3):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=q[i]))

    module = agree(model, guide, data, calls=4)
    assert module.graph.sites() == ("loc", "data", "z_0", "z_1", "z_2", "x_0", "y_0", "x_1", "y_1", "x_2", "y_2")
    assert module.verify(data).ok


def test_a_rebound_buffer_is_written() -> None:
    class Running(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))
            self.weight = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()  # rebinds, as eager Python does
            return self.weight * (x - self.mean)

    def build(net: Running) -> tuple[Any, Any]:
        def model(x: Tensor) -> None:
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=net(x))

        def guide(x: Tensor) -> None:
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))

        return model, guide

    x = torch.tensor([1.0, 2.0, 3.0])
    ours, theirs = Running(), Running()
    module = sgc.compile(*build(ours), backend="eager").initialize(x)
    buffer = ours.mean
    assert buffer.item() == 0.0
    for step in range(3):
        pyro.set_rng_seed(step)
        mine = module(x).item()
        pyro.set_rng_seed(step)
        assert pyro.infer.TraceGraph_ELBO().loss(*build(theirs), x) == pytest.approx(mine, rel=1e-6)
    assert ours.mean is buffer and torch.allclose(ours.mean, theirs.mean)


def test_a_tensor_assigned_to_an_attribute_is_put_back() -> None:
    class Net(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            self.last = z
            return z

    net = Net()

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(net(z), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))

    module = sgc.compile(model, guide, backend="eager")
    with pytest.warns(SideEffectWarning, match=r"Net\.last"):
        module()
    assert net.last.item() in (0.0, 1.0)  # the prototype's, a real tensor


def test_an_opaque_sampler_leaves_the_rest_compiled() -> None:
    def model() -> None:
        angle = pyro.sample("angle", dist.VonMises(0.0, 1.0))
        pyro.sample("x", dist.Normal(angle.sin(), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        loc, log_kappa = pyro.param("loc", torch.tensor(0.2)), pyro.param("k", torch.tensor(0.5))
        pyro.sample("angle", dist.VonMises(loc, log_kappa.exp()))

    module = agree(model, guide, calls=4)
    assert module.graph.payload("angle").opaque  # type: ignore[attr-defined]
    assert sum("opaque" in str(node.target) for node in module.module.graph.nodes) == 1


def test_an_opaque_sampler_of_float64() -> None:
    """What the sampler converts to float64 is the very tensor that it is given."""

    def model() -> None:
        angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.0).double(), torch.tensor(1.0).double()))
        pyro.sample("x", dist.Normal(angle.sin(), 1.0), obs=torch.tensor(0.3).double())

    def guide() -> None:
        pyro.sample("angle", dist.VonMises(pyro.param("l", LOC), pyro.param("k", KAPPA)))

    agree(model, guide, calls=3)


LOC, KAPPA = torch.tensor(0.2, dtype=torch.float64), torch.tensor(1.2, dtype=torch.float64)


def test_an_opaque_sampler_with_a_pathwise_gradient() -> None:
    """Wishart samples in a loop that checks its draws; its gradient is that of its own code."""

    def model() -> None:
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        pyro.sample("x", dist.Normal(precision.sum(), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        scale = pyro.param("scale", torch.tensor([1.0, 2.0]))
        pyro.sample("precision", dist.Wishart(torch.tensor(5.0), scale_tril=torch.diag(scale)))

    agree(model, guide, calls=3)


def test_samples_of_custom_functions_keep_their_gradients() -> None:
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
            ctx.factor = factor
            return x * factor

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
            return 10.0 * gradient * ctx.factor, None  # not the derivative: what the author wants

    def model() -> None:
        z = pyro.sample("z", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Normal(Scale.apply(z, 3.0), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        concentration = pyro.param("c", torch.tensor([1.5, 2.5])).exp()
        pyro.sample("z", dist.Beta(concentration[0], concentration[1]))

    agree(model, guide, calls=3)


def test_a_sample_written_in_place_is_followed() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        x = torch.zeros(2)
        x[0] = z
        pyro.sample("x", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))

    assert sgc.capture(model, guide).provenance("log p(x)") == {"z"}


def test_a_tensor_made_of_samples() -> None:
    """``torch.tensor([z, 2])`` reads its parts in eager Pyro, which loses their gradient and their provenance."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pair = torch.tensor([[z, 2], [1.5, z]])
        pyro.sample("x", dist.Normal(pair.sum(), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))

    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.graph.provenance("log p(x)") == {"z"}
    report = module.verify()
    assert report.ok and "Pyro's provenance loses that" in str(report)


def test_a_counter_kept_by_the_model_is_warned_of() -> None:
    calls = [0]

    def model() -> None:
        calls[0] += 1
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))

    with pytest.warns(SideEffectWarning, match="calls") as caught:
        sgc.compile(model, guide, backend="eager")()
    assert caught[0].filename == __file__


def test_a_broadcast_leaks_no_dependence() -> None:
    """What is broadcast together with a sample does not depend on it."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        net = torch.nn.Linear(3, 1)
        options = {"nn_baseline": lambda x: net(x).squeeze(-1), "nn_baseline_input": x}
        logits = pyro.param("q", torch.zeros(3))
        pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1), infer={"baseline": options})

    graph = sgc.capture(model, guide, torch.ones(3))
    assert graph.provenance("baseline_input(z)") == frozenset()


def test_a_count_that_the_program_reads_and_raises_is_captured_as_it_was() -> None:
    """A cumulative average divides by a count of the calls, which the prototype must leave as it was."""
    norm = nn.BatchNorm1d(2, momentum=None, affine=False)  # type: ignore[arg-type]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(norm(x), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.param("unused", torch.tensor(0.0))

    module = sgc.compile(model, guide, backend="eager")
    batches = torch.randn(4, 5, 2)
    for count, batch in enumerate(batches, start=1):
        module(batch)
        assert norm.num_batches_tracked == count
        torch.testing.assert_close(norm.running_mean, batches[:count].mean((0, 1)))


def _guide_of_x(x: Tensor) -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))


KEPT = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize(
    "mean",
    [
        lambda x: copy.deepcopy(x).sum(),
        lambda x: copy.deepcopy({"a": [x, x]})["a"][1].sum(),
        lambda x: copy.deepcopy(KEPT).sum(),
        lambda x: copy.deepcopy(nn.Linear(2, 1)).bias.shape[0] * x.sum(),
        lambda x: len(str(x)) + len(f"{x[0]}"),
        lambda x: {"tensor(0.5000)": 3.0}.get(repr(x[0]), 1.0),
    ],
    ids=["deepcopy", "in containers", "of a global", "of a module", "texts", "a text as a key"],
)
def test_copies_and_texts_are_of_each_call(mean: Any, backend: Any) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + mean(x), 1.0), obs=torch.tensor(0.3))

    module = sgc.compile(model, _guide_of_x, backend=backend)
    for step, x in enumerate((torch.tensor([0.5, 1.0]), torch.tensor([0.25, 7.123]))):
        KEPT.fill_(step)
        pyro.set_rng_seed(step)
        mine = module(x).item()
        pyro.set_rng_seed(step)
        assert pyro.infer.TraceGraph_ELBO().loss(model, _guide_of_x, x) == pytest.approx(mine, rel=1e-6)


def test_what_is_shown_reads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    written = io.StringIO()
    log = logging.Logger("model")
    log.addHandler(logging.StreamHandler(written))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        print("z", z, dist.Normal(z, 1.0))
        log.warning("%s %s", x, z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    module = sgc.compile(model, _guide_of_x, backend="eager")
    for value in (0.5, 0.7):
        module(torch.tensor(value))
    assert len(module.specializations) == 1
    printed = capsys.readouterr().out
    assert "Normal(loc: " in printed and "FakeTensor" not in printed and "size=" not in printed
    assert "tensor(..., size=(), dtype=torch.float32)" in written.getvalue()


@pytest.mark.parametrize(
    "kept",
    [
        dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [transforms.planar(3)]),
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), [transforms.Permute(torch.arange(3))]
        ),
        dist.VonMises(torch.zeros(3), 1.0).to_event(1),
        dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True])).to_event(1),
    ],
    ids=["planar", "permutation", "von Mises", "masked"],
)
def test_a_kept_distribution_may_be_the_first_thing_that_a_program_draws(kept: dist.TorchDistribution) -> None:
    """Of a program without arguments nothing is recorded before it."""

    def model() -> None:
        z = pyro.sample("z", dist.VonMises(torch.zeros(3), 2.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(3))

    def guide() -> None:
        pyro.sample("z", kept)

    module = sgc.compile(model, guide, backend="eager")
    pyro.set_rng_seed(2)
    ours = module().item()
    pyro.set_rng_seed(2)
    assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide), rel=1e-6)


@pytest.mark.parametrize(
    "names", [("lambda", "in.x", "None"), ("0", "1st"), ("a-b", "a_b", "a b"), ("self", "torch", "inf", "print")]
)
def test_parameters_may_have_names_that_python_has_or_could_not_have(names: tuple[str, ...]) -> None:
    """The inputs of the emitted modules have names like them."""

    def model(data: Tensor) -> None:
        loc = sum(pyro.param(name, torch.tensor(0.5 + i)) for i, name in enumerate(names))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=data)

    module = agree(model, lambda data: None, torch.tensor(0.25))
    assert {name for name, _ in module.named_parameters()} == {f"param_store.{name}" for name in names}
