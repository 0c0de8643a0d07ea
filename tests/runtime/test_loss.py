"""The loss module as a user meets it: values, gradients, parameters, state."""

from __future__ import annotations

import copy
import io
import warnings

import networkx as nx
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, fx, nn
from torch.distributions import constraints

import sgc
from sgc.graph.meta_keys import ABOUT
from tests.programs import local_switches

X = torch.tensor([0.1, 0.9, -0.4])
BACKENDS = ["eager", "torchscript", pytest.param("inductor", marks=pytest.mark.inductor)]


def pyro_loss_and_gradients(model, guide, parameters, *args, seed=5):  # type: ignore[no-untyped-def]
    for parameter in parameters:
        parameter.grad = None
    pyro.set_rng_seed(seed)
    loss = pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, *args)
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return loss, gradients


@pytest.mark.parametrize("backend", BACKENDS)
def test_value_is_the_loss_and_gradient_the_surrogates(backend: str) -> None:
    model, guide = local_switches()
    module = sgc.compile(model, guide, backend=backend, rng="torch").initialize(X)
    parameters = list(module.parameters())
    loss, gradients = pyro_loss_and_gradients(model, guide, parameters, X)
    pyro.set_rng_seed(5)
    ours = module(X)
    assert ours.dim() == 0 and ours.item() == pytest.approx(loss, rel=1e-6)
    ours.backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_grad_only_the_loss(backend: str) -> None:
    infer = {"baseline": {"use_decaying_avg_baseline": True}}
    model, guide = local_switches(infer)
    module = sgc.compile(model, guide, backend=backend, rng="torch").initialize(X)
    pyro.set_rng_seed(5)
    with torch.no_grad():
        loss = module(X)
    assert not loss.requires_grad
    average = next(module.baselines.buffers())
    assert torch.equal(average, torch.zeros(3))  # evaluation does not move the averages, as in Pyro
    pyro.set_rng_seed(5)
    assert module(X).item() == pytest.approx(loss.item(), rel=1e-6)
    assert not torch.equal(average, torch.zeros(3))


def test_backward_follows_torch() -> None:
    module = sgc.compile(*local_switches(), backend="eager").initialize(X)
    loss = module(X)
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in module.parameters()]
    loss.backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(module.parameters(), once, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    module.zero_grad()
    pyro.set_rng_seed(1)
    (3 * module(X)).backward()
    tripled = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    pyro.set_rng_seed(1)
    module(X).backward()
    assert all(torch.allclose(t, 3 * p.grad) for t, p in zip(tripled, module.parameters(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_parameters_own(backend: str) -> None:
    """What is done to ``.grad`` in place reaches no kept graph, no other gradient and no data."""
    x = torch.tensor([1.0, 2.0])

    def model() -> None:
        a, b = (pyro.param(name, torch.zeros(2)) for name in "ab")
        pyro.factor("linear", (a + b) @ x)  # both gradients are the data, or one tensor

    module = sgc.compile(model, lambda: None, backend=backend).initialize()
    a, b = module.parameters()
    loss = module()
    for times in (1, 2):
        loss.backward(retain_graph=True)
        for p in (a, b):
            assert torch.equal(p.grad, -x)
        a.grad.mul_(5)
        assert torch.equal(b.grad, -x), times
        b.grad.zero_()
        a.grad = b.grad = None
    assert torch.equal(x, torch.tensor([1.0, 2.0]))
    model_, guide = local_switches()
    module = sgc.compile(model_, guide, backend=backend).initialize(X)
    loss = module(X)
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad.fill_(7.0)
        p.grad = None
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), once, strict=True))


def test_gradient_reaches_inputs() -> None:
    model, guide = local_switches()
    module = sgc.compile(model, guide, backend="eager")
    x = X.clone().requires_grad_()
    pyro.set_rng_seed(2)
    module(x).backward()
    ours, x.grad = x.grad, None
    pyro.set_rng_seed(2)
    pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, x)
    assert ours is not None and torch.equal(ours, x.grad)


def test_parameters_are_the_stores_own_tensors() -> None:
    module = sgc.compile(*local_switches(), backend="eager").initialize(X)
    store = pyro.get_param_store()
    assert {id(p) for p in module.parameters()} == {id(store._params[name]) for name in ("q", "loc_loc")}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = pyro.param("q").item()
    module(X).backward()
    optimizer.step()
    assert pyro.param("q").item() != before
    # and the reverse: what Pyro changes, sgc sees
    with torch.no_grad():
        store._params["loc_loc"].fill_(50.0)
    assert module(X).item() > 1000


def test_clear_param_store_is_noticed_without_a_new_compilation() -> None:
    module = sgc.compile(*local_switches(), backend="eager").initialize(X)
    with torch.no_grad():
        pyro.get_param_store()._params["loc_loc"].fill_(50.0)
    assert module(X).item() > 1000
    pyro.clear_param_store()
    assert module(X).item() < 100
    assert len(module.specializations) == 1
    assert {id(p) for p in module.parameters()} == {id(p) for p in pyro.get_param_store()._params.values()}


def test_frozen_parameters_stay_frozen_and_thaw() -> None:
    net = nn.Linear(1, 1)
    net.bias.requires_grad_(False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))

    module = sgc.compile(model, guide, backend="eager")
    module(X).backward()
    assert net.weight.grad is not None and net.bias.grad is None
    net.bias.requires_grad_(True)
    module(X).backward()
    assert net.bias.grad is not None
    assert "requires_grad" in str(module.misses())
    assert "networks.linear.weight" in dict(module.named_parameters())


def test_a_parameter_that_the_surrogate_does_not_reach_has_no_gradient() -> None:
    def model() -> None:
        pyro.param("unused", torch.tensor(1.0))
        pyro.sample("z", dist.Bernoulli(0.5))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))

    module = sgc.compile(model, guide, backend="eager")
    module().backward()
    store = pyro.get_param_store()._params
    assert store["q"].grad is not None and store["unused"].grad is None


class Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            loc = self.norm(torch.stack([z, x], -1)).sum(-1)
            pyro.sample("x", dist.Normal(loc, self.scale), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.logit = PyroParam(torch.tensor(0.3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.Bernoulli(logits=self.logit), infer=infer)


def test_state_dict_round_trip() -> None:
    module = sgc.compile(Model(), Guide(), backend="eager").initialize(X)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(X).backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    pyro.set_rng_seed(3)
    expected = module(X).item()
    file.seek(0)
    pyro.clear_param_store()
    other = sgc.compile(Model(), Guide(), backend="eager").initialize(X)
    other.load_state_dict(torch.load(file))
    assert {"model.norm.running_mean", "baselines.z", "guide.logit_unconstrained"} <= set(other.state_dict())
    pyro.set_rng_seed(3)
    assert other(X).item() == expected


def test_batch_norm_and_averages_move_as_in_pyro() -> None:
    ours, theirs = Model(), Model()
    guide = Guide()
    module = sgc.compile(ours, guide, backend="eager").initialize(X)
    assert ours.norm.num_batches_tracked.item() == 0  # capturing is no step
    for seed in range(3):
        pyro.set_rng_seed(seed)
        module(X).backward()
    average = next(module.baselines.buffers()).clone()
    pyro.clear_param_store()
    elbo = pyro.infer.TraceGraph_ELBO()
    for seed in range(3):
        pyro.set_rng_seed(seed)
        elbo.loss_and_grads(theirs, guide, X)
    assert ours.norm.num_batches_tracked.item() == 3
    assert torch.equal(ours.norm.running_mean, theirs.norm.running_mean)
    assert torch.equal(ours.norm.running_var, theirs.norm.running_var)
    assert torch.allclose(average, pyro.param("__baseline_avg_downstream_cost_z").detach())


def test_train_and_eval_are_two_specializations() -> None:
    module = sgc.compile(Model(), Guide(), backend="eager").initialize(X)
    module.eval()
    pyro.set_rng_seed(0)
    first = module(X).item()
    pyro.set_rng_seed(0)
    assert module(X).item() == first  # eval mode: the statistics stand still
    module.train()
    module(X)
    assert len(module.specializations) == 2


def test_float64_and_to() -> None:
    torch.set_default_dtype(torch.float64)
    module = sgc.compile(*local_switches(), backend="eager").initialize(X.double())
    assert module(X.double()).dtype is torch.float64
    module(X.double()).backward()
    torch.set_default_dtype(torch.float32)
    module.to(torch.float32)
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module(X).dtype is torch.float32
    assert pyro.param("q").dtype is torch.float32


def test_nan_warns_as_pyro_does() -> None:
    module = sgc.compile(*local_switches(), backend="eager", validate=False).initialize(X)
    for _ in range(2):
        with pytest.warns(UserWarning) as caught:
            assert torch.isnan(module(torch.full((3,), float("nan"))))
        assert [str(warning.message) for warning in caught] == ["Encountered NaN: loss"]


def test_a_parameter_that_is_nan_is_pyros_error() -> None:
    module = sgc.compile(*local_switches(), backend="eager").initialize(X)
    with torch.no_grad():
        pyro.get_param_store()._params["loc_loc"].fill_(float("nan"))
    for _ in range(2):
        with pytest.raises(ValueError, match="Expected parameter loc"):
            module(X)


def test_random_state_is_that_of_one_evaluation() -> None:
    model, guide = local_switches()
    pyro.infer.TraceGraph_ELBO().loss(model, guide, X)  # parameters exist
    pyro.set_rng_seed(9)
    first = sgc.compile(model, guide, backend="eager")(X).item()
    after = torch.rand(())
    pyro.set_rng_seed(9)
    assert pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, X) == pytest.approx(first, rel=1e-6)
    assert torch.equal(torch.rand(()), after)


def test_random_initial_values_and_first_samples_are_not_the_same_numbers() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(3))

    def guide() -> None:
        loc = pyro.param("loc", lambda: torch.randn(3))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    module = sgc.compile(model, guide, backend="eager").initialize()
    initial = pyro.param("loc").detach().clone()
    assert not torch.allclose(torch.randn(3), initial)
    assert len(module.graph.sites()) == 2


def test_module_code_and_graph() -> None:
    module = sgc.compile(*local_switches(), backend="eager").initialize(X)
    assert isinstance(module.module, fx.GraphModule) and "score_term_z" in module.code
    assert isinstance(module.graph, nx.DiGraph) and isinstance(module.graph, sgc.StochasticGraph)
    tied = {ABOUT.of(node) for node in module.module.graph.nodes}
    assert {"z", "loc", "surrogate", "score_term(z)"} <= tied
    graph = sgc.capture(*local_switches(), X)
    assert set(graph) == set(module.graph)


def test_verify_reports_equality_and_changes_nothing() -> None:
    infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_value": torch.full((3,), 0.3)}}
    module = sgc.compile(*local_switches(infer), backend="eager", num_particles=2)
    module(X).backward()
    state, tensors = torch.get_rng_state(), copy.deepcopy(module.state_dict())
    gradients = [p.grad.clone() for p in module.parameters()]
    report = module.verify(X)
    assert report.ok and bool(report) and "equal" in str(report)
    assert {d.name for d in report.sites} >= {"z", "loc", "log p(x)", "-log q(z)"}
    assert {d.name for d in report.gradients} == {"q", "loc_loc"}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, module.state_dict()[name]) for name, t in tensors.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), gradients, strict=True))


def test_verify_finds_a_difference() -> None:
    model, guide = local_switches()
    module = sgc.compile(model, guide, backend="eager").initialize(X)
    specialization = module.specializations[-1]
    for node in specialization.emitted.module.graph.nodes:
        if node.name.startswith("score_term_z") and node.target is torch.mul:
            node.target = torch.add  # sabotage
            break
    else:
        raise AssertionError("no score term to sabotage")
    specialization.emitted.module.recompile()
    report = module.verify(X)
    assert not report.ok and "DIFFERENT" in str(report)
    bad = [difference.name for difference in report.gradients if not difference.within(report.tolerance)]
    assert bad == ["q"]


def test_particles_average() -> None:
    model, guide = local_switches()
    for vectorize in (False, True):
        options = {"num_particles": 3, "vectorize_particles": vectorize, "max_plate_nesting": 1}
        module = sgc.compile(model, guide, backend="eager", **options).initialize(X)
        pyro.set_rng_seed(4)
        ours = module(X).item()
        pyro.set_rng_seed(4)
        elbo = pyro.infer.TraceGraph_ELBO(**options)
        elbo.max_plate_nesting = module.specializations[-1].prototype.max_plate_nesting
        assert elbo.loss_and_grads(model, guide, X) == pytest.approx(ours, rel=1e-6)


def test_many_particles_are_not_unrolled() -> None:
    """The emitted module holds one run; loss, gradients and averages are those of all particles in turn."""
    model, guide = local_switches({"baseline": {"use_decaying_avg_baseline": True}})
    module = sgc.compile(model, guide, backend="eager", num_particles=30).initialize(X)
    few = sgc.compile(model, guide, backend="eager", num_particles=1).initialize(X)
    assert len(module.module.graph.nodes) == len(few.module.graph.nodes)
    report = module.verify(X)
    assert report.ok, str(report)
    pyro.set_rng_seed(4)
    ours = module(X).item()
    average = next(module.baselines.buffers()).clone()
    pyro.clear_param_store()
    few.initialize(X)
    elbo = pyro.infer.TraceGraph_ELBO(num_particles=30)
    pyro.set_rng_seed(4)
    assert elbo.loss_and_grads(model, guide, X) == pytest.approx(ours, rel=1e-5)
    assert torch.allclose(pyro.param("__baseline_avg_downstream_cost_z").detach(), average, rtol=1e-5)


def test_ragged_batches_keep_an_average_each() -> None:
    infer = {"baseline": {"use_decaying_avg_baseline": True}}
    module = sgc.compile(*local_switches(infer), backend="eager")
    for x in (X, X, X[:2], X, X[:2]):
        module(x).backward()
    shapes = {name: list(t.shape) for name, t in module.baselines.named_buffers()}
    assert shapes == {"z": [3], "z_2": [2]}
    assert len(module.specializations) == 2


def test_deepcopy_and_pickle_are_refused_or_right() -> None:
    """A loss module holds compiled code and Pyro's global tensors; only its state_dict travels."""
    module = sgc.compile(*local_switches(), backend="eager").initialize(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = copy.deepcopy(module.state_dict())
    module.load_state_dict(state)


@pytest.mark.inductor
def test_an_index_out_of_bounds_is_pyros_error() -> None:
    def model(index: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(3))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z * weights.gather(0, index).sum(), 1.0), obs=torch.tensor(0.7))

    def guide(index: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    module = sgc.compile(model, guide)
    module(torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="^index 7 is out of bounds"):
        module(torch.tensor([1, 7]))


def test_a_program_that_clears_the_store_and_fails_leaves_it_as_it_was() -> None:
    kept = pyro.param("kept", torch.tensor(5.0)).unconstrained()  # type: ignore[attr-defined]

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.clear_param_store()
        raise ZeroDivisionError

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ZeroDivisionError):
        sgc.compile(model, guide, backend="eager")()
    store = pyro.get_param_store()
    assert store._params == {"kept": kept}
    assert store.param_name(kept) == "kept"
    assert store._constraints.keys() == {"kept"}
