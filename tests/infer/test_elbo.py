"""The ELBO classes have Pyro's constructor, methods and numbers."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

import sgc.infer
from sgc.errors import ArgumentError, BackendError
from tests.programs import discrete_chain, local_switches

DATA = torch.tensor([0.3, -1.2, 0.8])
CLASSES = [sgc.infer.TraceGraph_ELBO, sgc.infer.JitTraceGraph_ELBO]
BASELINE = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}}


def gradients() -> dict[str, Tensor | None]:
    found = {name: tensor.grad for name, tensor in pyro.get_param_store().named_parameters()}
    return {name: gradient for name, gradient in found.items() if not name.startswith("__baseline")}


def created(program: Any, *args: Any) -> Any:
    """The program, with its parameters in the store."""
    pyro.infer.TraceGraph_ELBO().loss(*program, *args)
    return program


@pytest.mark.parametrize("elbo", CLASSES)
def test_the_constructor_takes_what_pyro_takes_in_its_order(elbo: Any) -> None:
    theirs = list(inspect.signature(pyro.infer.TraceGraph_ELBO.__init__).parameters.values())
    ours = list(inspect.signature(elbo.__init__).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])
    assert isinstance(elbo(), ELBO)


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(ArgumentError, match="num_particles"):
        sgc.infer.TraceGraph_ELBO(num_particles=0)
    with pytest.raises(ArgumentError, match="dynamic must be one of"):
        sgc.infer.TraceGraph_ELBO(dynamic="maybe")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="unknown backend"):
        sgc.infer.TraceGraph_ELBO(backend="fortran")  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match="max_iarange_nesting is deprecated"):
        assert sgc.infer.TraceGraph_ELBO(max_iarange_nesting=2).max_plate_nesting == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_particles": 3},
        {"num_particles": 3, "vectorize_particles": True},
        {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2},
        {"num_particles": 1, "vectorize_particles": True, "max_plate_nesting": 1},
        {"retain_graph": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("elbo", CLASSES)
def test_loss_and_gradients_are_pyros_under_one_seed(elbo: Any, options: dict[str, Any]) -> None:
    program = created(local_switches(), DATA)
    outcomes = []
    for implementation in (pyro.infer.TraceGraph_ELBO, elbo):
        instance = implementation(**options)
        instance.loss(*program, DATA)  # where Pyro must find the plate nesting, it draws samples for that
        pyro.set_rng_seed(3)
        loss = instance.loss_and_grads(*program, DATA)
        assert isinstance(loss, float)
        outcomes.append((loss, gradients()))
        for tensor in pyro.get_param_store()._params.values():
            tensor.grad = None
    (their_loss, theirs), (our_loss, ours) = outcomes
    assert our_loss == pytest.approx(their_loss, rel=1e-6)
    assert theirs.keys() == ours.keys() == {"loc_loc", "q"}
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


def test_gradients_accumulate() -> None:
    program, elbo = created(local_switches(), DATA), sgc.infer.TraceGraph_ELBO()
    pyro.set_rng_seed(1)
    elbo.loss_and_grads(*program, DATA)
    once = {name: gradient.clone() for name, gradient in gradients().items() if gradient is not None}
    pyro.set_rng_seed(1)
    elbo.loss_and_grads(*program, DATA)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, 2 * once[name])


def test_loss_has_no_side_effects() -> None:
    program, elbo = created(local_switches(BASELINE), DATA), sgc.infer.TraceGraph_ELBO()
    elbo.loss_and_grads(*program, DATA)
    before = {name: tensor.clone() for name, tensor in pyro.get_param_store().named_parameters()}
    grads = {name: None if g is None else g.clone() for name, g in gradients().items()}
    pyro.set_rng_seed(5)
    ours = elbo.loss(*program, DATA)
    for name, tensor in pyro.get_param_store().named_parameters():
        assert torch.equal(tensor, before[name])
    for name, gradient in gradients().items():
        assert torch.equal(gradient, grads[name])
    pyro.set_rng_seed(5)
    assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(*program, DATA), rel=1e-6)


def test_differentiable_loss_has_the_value_of_the_loss_and_the_gradient_of_the_surrogate() -> None:
    program, elbo = created(discrete_chain(3)), sgc.infer.TraceGraph_ELBO()
    pyro.set_rng_seed(2)
    loss = elbo.differentiable_loss(*program)
    pyro.set_rng_seed(2)
    assert loss.item() == pytest.approx(pyro.infer.TraceGraph_ELBO().loss_and_grads(*program), rel=1e-6)
    logits = pyro.get_param_store()._params["logits"]
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(gradient, 3 * logits.grad)


def test_no_gradient_is_taken_where_there_is_nothing_to_train() -> None:
    def program() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert isinstance(sgc.infer.TraceGraph_ELBO().loss_and_grads(program, program), float)


def test_as_a_module_it_shows_the_parameters() -> None:
    model, guide = local_switches()
    module = sgc.infer.TraceGraph_ELBO()(model, guide)
    assert isinstance(module, torch.nn.Module)
    optimizer = torch.optim.Adam(module.initialize(DATA).parameters(), lr=0.1)
    before = pyro.param("q").item()
    loss = module(DATA)
    loss.backward()
    optimizer.step()
    assert len(list(module.parameters())) == 2
    assert pyro.param("q").item() != before


def test_one_instance_serves_many_models_and_settings() -> None:
    elbo = sgc.infer.TraceGraph_ELBO()
    one, other = created(local_switches(), DATA), created(discrete_chain(2))
    elbo.loss(*one, DATA)
    elbo.loss(*other)
    kept = elbo.compiled(*one)
    elbo.loss(*one, DATA)
    assert elbo.compiled(*one) is kept
    assert len(kept.specializations) == 1
    elbo.num_particles = 2  # Pyro's instances can be changed, too
    assert elbo.compiled(*one) is not kept
    assert elbo.compiled(*one).options.num_particles == 2


def test_methods_of_one_object_are_one_program() -> None:
    class Pair:
        def model(self) -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))

        def guide(self) -> None:
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    pair, another, elbo = Pair(), Pair(), sgc.infer.TraceGraph_ELBO()
    assert elbo.compiled(pair.model, pair.guide) is elbo.compiled(pair.model, pair.guide)
    assert elbo.compiled(pair.model, pair.guide) is not elbo.compiled(another.model, another.guide)


def test_copies_and_pickles_start_afresh() -> None:
    elbo = sgc.infer.TraceGraph_ELBO(num_particles=2)
    elbo.loss(*created(discrete_chain(1)))
    for other in (copy.deepcopy(elbo), pickle.loads(pickle.dumps(elbo))):
        assert other.num_particles == 2
        assert not other._compiled


@pytest.mark.filterwarnings("ignore::sgc.errors.SideEffectWarning")
def test_particles_run_one_after_another_cost_one_capture() -> None:
    runs = []

    def model() -> None:
        runs.append(1)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    sgc.infer.TraceGraph_ELBO(num_particles=50).loss(model, model)
    assert len(runs) < 10


def test_track_non_reparam_is_pyros_and_the_graph_gives_the_same_sets() -> None:
    model, guide = created(discrete_chain(3))
    with sgc.infer.TrackNonReparam():
        traced = pyro.poutine.trace(guide).get_trace()
    traced.compute_log_prob()
    elbo = sgc.infer.TraceGraph_ELBO()
    elbo.loss(model, guide)
    graph = elbo.compiled(model, guide).graph
    for name in ("z_0", "z_1", "z_2"):
        theirs = pyro.ops.provenance.get_provenance(traced.nodes[name]["log_prob"])
        assert graph.provenance(f"-log q({name})", reparameterized=False) == theirs
