"""Branches on samples that are assumed to go one way: where they go another, the call is eager Pyro's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn

import sgc
from sgc.errors import ArgumentError, DataDependenceError, StandInWarning

X = torch.tensor(1.3)
AVERAGED = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}}
SEEDS = range(24)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StandInWarning)
        yield


def guide(x: Tensor) -> None:
    q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(q), infer=AVERAGED)
    pyro.sample("w", dist.Normal(pyro.param("m", torch.tensor(0.2)), 0.8))


def latents() -> tuple[Tensor, Tensor]:
    return pyro.sample("z", dist.Bernoulli(0.4)), pyro.sample("w", dist.Normal(0.0, 1.0))


def deciding(decide: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor], None]:
    """A model whose likelihood is one of two, as something about its samples says."""

    def model(x: Tensor) -> None:
        z, w = latents()
        if decide(z, w):
            pyro.sample("x", dist.Normal(w + 2.0, 1.5), obs=x)
        else:
            pyro.sample("x", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * w, 1.0), obs=x)

    return model


def until(z: Tensor, w: Tensor) -> bool:
    steps = 0
    while w < 0.5 and steps < 4:
        w, steps = w + torch.rand(()), steps + 1
    return steps > 1


DECISIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "if": lambda z, w: z,
    "comparison": lambda z, w: w > 0.3,
    "not": lambda z, w: not z,
    "and": lambda z, w: z > 0 and w < 0.4,
    "any": lambda z, w: (torch.stack([z, w]) > 0.8).any(),
    "item of a Boolean": lambda z, w: (w > 0.1).item(),
    "tolist of a Boolean": lambda z, w: (w > 0.1).tolist(),
    "is_nonzero": lambda z, w: torch.is_nonzero(z),
    "equal": lambda z, w: torch.equal(z, torch.ones(())),
    "allclose": lambda z, w: torch.allclose(z, torch.zeros(()), atol=1e-3),
    "contains": lambda z, w: 1.0 in torch.stack([z, z + 2]),
    "max": lambda z, w: max(w, z) is w,
    "a random number of no site": lambda z, w: torch.rand(()) < 0.4,
    "while": until,
}


def state() -> dict[str, Tensor]:
    store = pyro.get_param_store()._params
    gradients = {f"gradient of {name}": t.grad for name, t in store.items() if t.grad is not None}
    return {name: t.detach().clone() for name, t in {**store, **gradients, "random": torch.get_rng_state()}.items()}


def of_pyro(model: Any, own_guide: Any, *args: Any, **options: Any) -> list[tuple[float, dict[str, Tensor]]]:
    """Losses of eager Pyro, each with parameters, gradients, averages and the random state after it."""
    pyro.clear_param_store()
    elbo, seen = TraceGraph_ELBO(**options), []
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        loss = elbo.loss_and_grads(model, own_guide, *args)
        seen.append((loss, state()))
        clear_gradients()
    return seen


def clear_gradients() -> None:
    for tensor in pyro.get_param_store()._params.values():
        tensor.grad = None


def check(model: Any, own_guide: Any, *args: Any, exact: bool = True, **options: Any) -> sgc.LossModule:
    """Compare with Pyro under many seeds, bit by bit."""
    theirs = of_pyro(model, own_guide, *args, **options)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    compiled = sgc.compile(model, own_guide, backend="eager", dynamic="speculate", **options)
    for seed, (their_loss, their_state) in zip(SEEDS, theirs, strict=True):
        pyro.set_rng_seed(seed)
        loss = compiled(*args)
        loss.backward()
        assert loss.item() == (their_loss if exact else pytest.approx(their_loss, rel=1e-6))
        ours = state()
        assert ours.keys() >= their_state.keys()
        for name, value in their_state.items():
            same = torch.equal if exact or name == "random" else torch.allclose
            assert same(ours[name], value), (seed, name)
        clear_gradients()
    return compiled


def failures(compiled: sgc.LossModule) -> int:
    return sum(made.tally.failures.total() for made in compiled.specializations if made.tally is not None)


@pytest.mark.parametrize("name", DECISIONS)
def test_each_kind_of_decision_gives_what_pyro_gives(name: str) -> None:
    compiled = check(deciding(DECISIONS[name]), guide, X)
    assert 0 < failures(compiled) < len(SEEDS)


@pytest.mark.parametrize(
    "options",
    [{"num_particles": 3}, {"num_particles": 6}, {"num_particles": 2, "vectorize_particles": True}],
    ids=str,
)
def test_all_particles_of_a_call_are_pyros(options: dict[str, Any]) -> None:
    def some(z: Tensor, w: Tensor) -> Tensor:
        return (w > 1.2).any()

    # Pyro finds the nesting of plates by a run that draws; six particles are added up in another order.
    compiled = check(deciding(some), guide, X, max_plate_nesting=0, exact=options["num_particles"] < 6, **options)
    assert 0 < failures(compiled) < len(SEEDS)


def test_branches_in_plates_and_in_the_guide() -> None:
    data = torch.tensor([0.3, -0.4, 1.1])

    def model(data: Tensor) -> None:
        with pyro.plate("columns", 3):
            z = pyro.sample("z", dist.Bernoulli(0.2))
            pyro.sample("x", dist.Normal(z if z.sum() < 2 else z / 2, 1.0), obs=data)
        for i in pyro.plate("rows", 2):
            u = pyro.sample(f"u_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y_{i}", dist.Normal(u if u > -1 else -u, 1.0), obs=data[i])

    def own_guide(data: Tensor) -> None:
        with pyro.plate("columns", 3):
            z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(3))))
        for i in pyro.plate("rows", 2):
            scale = pyro.param("scale", torch.tensor(0.9), constraint=constraints.positive)
            pyro.sample(f"u_{i}", dist.Normal(0.0, scale if z.any() else 2 * scale))

    assert failures(check(model, own_guide, data)) > 0


class Counting(nn.Module):
    """Writes into one buffer, and binds another one anew, in either branch in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, z: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen[0] += 1
            if z:
                self.seen[1] += w
            self.mean = 0.9 * self.mean + 0.1 * w.detach()
        return w + self.mean


def test_buffers_are_those_of_pyro() -> None:
    def after(make: Callable[[Any, Any], Callable[[], Any]]) -> list[Tensor]:
        pyro.clear_param_store()
        network = Counting()

        def model(x: Tensor) -> None:
            z, w = latents()
            pyro.sample("x", dist.Normal(network(z, w), 1.0), obs=x)

        pyro.set_rng_seed(0)
        step, seen = make(model, guide), []
        for _ in SEEDS:
            step()
            seen.append(torch.cat([network.seen, network.mean.reshape(1)]).clone())
        return seen

    def ours(model: Any, own_guide: Any) -> Callable[[], Any]:
        compiled = sgc.compile(model, own_guide, backend="eager", dynamic="speculate")
        return lambda: compiled(X)

    theirs = after(lambda model, own_guide: lambda: TraceGraph_ELBO().loss_and_grads(model, own_guide, X))
    for one, other in zip(after(ours), theirs, strict=True):
        assert torch.equal(one, other)


def test_what_the_wrong_branch_raises_is_not_heard_of() -> None:
    def model(x: Tensor) -> None:
        z, w = latents()
        matrix = torch.eye(2) * (1 - z)
        if torch.linalg.det(matrix) == 0:
            matrix = matrix + torch.eye(2) * 0.5
        pyro.sample("x", dist.Normal(w * torch.linalg.cholesky(matrix).sum(), 1.0), obs=x)

    compiled = check(model, guide, X)
    assert 0 < failures(compiled) < len(SEEDS)


def test_an_autocast_region_before_a_branch() -> None:
    def model(x: Tensor) -> None:
        _, w = latents()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = torch.ones(2, 2) @ torch.stack([w, w])
            if product[0] > 0.9:
                product = product * 2
        pyro.sample("x", dist.Normal(product.float().sum(), 1.0), obs=x)

    assert failures(check(model, guide, X)) > 0


def test_an_error_of_the_other_branch_is_pyros_and_changes_nothing() -> None:
    network = Counting()

    def model(x: Tensor) -> None:
        z, w = latents()
        network(torch.zeros(()), w)
        if z:
            raise ZeroDivisionError("mine")
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    compiled = sgc.compile(model, guide, backend="eager", dynamic="speculate")
    raised = 0
    pyro.set_rng_seed(2)
    for _ in SEEDS:
        before, buffers = state(), [buffer.clone() for buffer in network.buffers()]
        try:
            compiled(X)
        except ZeroDivisionError:
            raised += 1
            after = state()
            assert all(torch.equal(after[name], value) for name, value in before.items())
            assert all(torch.equal(a, b) for a, b in zip(network.buffers(), buffers, strict=True))
            torch.rand(())
    assert raised > 2


def test_the_loss_alone_leaves_averages() -> None:
    model = deciding(DECISIONS["if"])
    pyro.set_rng_seed(1)
    compiled = sgc.compile(model, guide, backend="eager", dynamic="speculate")
    compiled(X).backward()
    average = pyro.get_param_store()._params["__baseline_avg_downstream_cost_z"]
    before = average.clone()
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            ours = compiled(X)
        pyro.set_rng_seed(seed)
        assert ours.item() == pytest.approx(TraceGraph_ELBO().loss(model, guide, X), rel=1e-6)
    assert failures(compiled) > 0
    assert pyro.get_param_store()._params["__baseline_avg_downstream_cost_z"] is average
    assert torch.equal(average, before)


@pytest.mark.parametrize(
    "read",
    [float, int, lambda z: z.item(), lambda z: z.tolist(), "{}".format, lambda z: z.reshape(1).nonzero()],
    ids=["float", "int", "item", "tolist", "format", "nonzero"],
)
def test_other_reads_stay_errors(read: Callable[[Tensor], Any]) -> None:
    def model(x: Tensor) -> None:
        z, w = latents()
        if str(read(z)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    with pytest.raises(DataDependenceError, match="torch.where"):
        sgc.compile(model, guide, backend="eager", dynamic="speculate")(X)


def test_without_the_option_nothing_is_assumed() -> None:
    with pytest.raises(DataDependenceError):
        sgc.compile(deciding(DECISIONS["if"]), guide, backend="eager")(X)


def test_samplers_that_loop_are_calls_of_python_and_no_assumptions() -> None:
    def model(x: Tensor) -> None:
        _, w = latents()
        pyro.sample("angle", dist.VonMises(w, 2.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def own_guide(x: Tensor) -> None:
        guide(x)
        pyro.sample("angle", dist.VonMises(0.0, pyro.param("k", torch.tensor(2.0), constraint=constraints.positive)))

    compiled = sgc.compile(model, own_guide, backend="eager", dynamic="speculate").initialize(X)
    assert "assumed" not in compiled.guards()
    assert compiled.specializations[0].tally is None


def test_a_parameter_compared_with_a_sample_is_not_guarded() -> None:
    def model(x: Tensor) -> None:
        _, w = latents()
        slope = pyro.param("slope", torch.tensor(0.5))
        if torch.equal(slope, w):
            w = w + 1e-6
        pyro.sample("x", dist.Normal(slope * w, 1.0), obs=x)

    compiled = sgc.compile(model, guide, backend="eager", dynamic="speculate").initialize(X)
    for _ in range(4):
        compiled(X)
        with torch.no_grad():
            pyro.get_param_store()._params["slope"].add_(0.1)
    assert len(compiled.specializations) == 1
    assert failures(compiled) == 0


def test_the_guards_say_what_is_assumed() -> None:
    pyro.set_rng_seed(0)
    compiled = sgc.compile(deciding(DECISIONS["comparison"]), guide, backend="eager", dynamic="speculate").initialize(X)
    line = compiled.guards().splitlines()[-1]
    assert line.startswith("assumed: Tensor.__bool__ gives ")
    assert line.endswith("if decide(z, w):")


def test_a_rare_branch_is_given_up_for_the_usual_one() -> None:
    def rare(z: Tensor, w: Tensor) -> Tensor:
        return w > 2.2

    pyro.set_rng_seed(0)
    while True:  # a random state from which the guide draws so
        start = torch.get_rng_state()
        dist.Bernoulli(0.3).sample()
        if dist.Normal(0.2, 0.8).sample() > 2.2:
            break
    model = deciding(rare)
    torch.set_rng_state(start)
    compiled = sgc.compile(model, guide, backend="eager", dynamic="speculate")
    losses = [compiled(X).item() for _ in range(30)]
    assert len(compiled.specializations) == 2
    tally = compiled.specializations[-1].tally
    assert tally is not None
    assert (tally.captures, tally.calls, tally.failures.total()) == (1, 25, 0)
    torch.set_rng_state(start)
    pyro.get_param_store()._params["__baseline_avg_downstream_cost_z"].zero_()
    assert losses == [TraceGraph_ELBO().loss_and_grads(model, guide, X) for _ in range(30)]


def test_usual_branches_that_cannot_be_captured_stay_with_pyro() -> None:
    def model(x: Tensor) -> None:
        z, w = latents()
        loc = w if z else w * float(w)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def seldom(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(0.01))
        pyro.sample("w", dist.Normal(pyro.param("m", torch.tensor(0.2)), 0.8))

    seed = next(seed for seed in range(1000) if pyro.set_rng_seed(seed) or dist.Bernoulli(0.01).sample())
    pyro.set_rng_seed(seed)
    compiled = sgc.compile(model, seldom, backend="eager", dynamic="speculate")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [compiled(X).item() for _ in range(12)]
    texts = [str(warning.message) for warning in caught if "cannot be captured" in str(warning.message)]
    assert len(texts) == 1
    assert "Tensor.__float__ reads the value of a sample" in texts[0]
    assert len(compiled.specializations) == 1
    pyro.set_rng_seed(seed)
    assert losses == [TraceGraph_ELBO().loss_and_grads(model, seldom, X) for _ in range(12)]


def test_a_branch_that_goes_either_way_is_said_to() -> None:
    pyro.set_rng_seed(1)
    compiled = sgc.compile(deciding(DECISIONS["if"]), guide, backend="eager", dynamic="speculate")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(60):
            compiled(X)
    texts = [str(warning.message) for warning in caught if warning.category is StandInWarning]
    assert 1 <= len(texts) <= 3
    assert texts[0].startswith("8 of ")
    assert "calls took another branch on a sample than the compiled program" in texts[0]
    assert "if decide(z, w):" in texts[0]
    assert "torch.where" in texts[0]


def test_a_warning_that_is_made_an_error_changes_nothing() -> None:
    pyro.set_rng_seed(1)
    compiled = sgc.compile(deciding(DECISIONS["if"]), guide, backend="eager", dynamic="speculate").initialize(X)
    with warnings.catch_warnings(), pytest.raises(StandInWarning, match="calls took another branch"):
        warnings.simplefilter("error", StandInWarning)
        for _ in range(60):
            before, state = torch.get_rng_state(), {k: v.clone() for k, v in compiled.state_dict().items()}
            compiled(X)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in compiled.state_dict().items())


def test_the_numbers_are_always_those_of_torch() -> None:
    assert sgc.compile(deciding(DECISIONS["if"]), guide, rng="fast", dynamic="speculate").options.rng == "torch"
    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="fast", dynamic="speculate")
    assert elbo.compiled(deciding(DECISIONS["if"]), guide).options.rng == "torch"
    with pytest.raises(ArgumentError, match="dynamic must be"):
        sgc.compile(guide, guide, dynamic="perhaps")  # type: ignore[arg-type]


def test_verify_compares_where_the_branches_go_as_assumed() -> None:
    for seed in range(4):
        pyro.set_rng_seed(seed)
        compiled = sgc.compile(deciding(DECISIONS["and"]), guide, backend="eager", dynamic="speculate")
        before = torch.get_rng_state()
        assert compiled.verify(X)
        assert torch.equal(torch.get_rng_state(), before)
