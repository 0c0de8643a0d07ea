"""All passes together, on programs of the zoo and on a step with an optimizer."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, fx

import sgc
from sgc.emit.backends.registry import build
from sgc.emit.differentiate import differentiate, trace
from sgc.emit.fx.module_laws import check
from sgc.emit.rewrites.optimize import PASSES, optimize
from sgc.errors import ArgumentError, ModuleError
from sgc.graph.effects import is_random
from tests.emit.rewrites.graphs import equal, lines, results, traced
from tests.programs import local_switches
from tests.reference.zoo import ZOO

PROGRAMS = (
    "constrained_vectors",
    "gamma_beta_dirichlet",
    "von_mises",
    "categorical_latents",
    "written_in_place",
    "written_at_a_sample",
    "auto_multivariate_normal",
    "batch_norm_training",
    "dropout",
    "sequential_particles_decaying",
    "several_baselines",
    "rejection_sampled_sites",
    "beta_bernoulli",
)
X = torch.tensor([1.0, -2.0, 3.0])


def differentiated(name: str) -> tuple[fx.GraphModule, list[Tensor], sgc.LossModule]:
    entry = next(entry for entry in ZOO if entry.name == name)
    case = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss_module = sgc.compile(case.model, case.guide, backend="eager", **case.options)
        loss_module.initialize(*case.args, **case.kwargs)
    found, inputs = loss_module.specialization_for(*case.args, **case.kwargs)
    tensors = found.with_averages(inputs)
    wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    module = differentiate(found.emitted.module, tensors, wanted).module
    return module, [tensor.detach() for tensor in tensors], loss_module


REASSOCIATED = {"auto_multivariate_normal"}
"""Programs with a sum that is long enough to be added up in another order, also without ``merge_sums``."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    """Equal results under one seed, fewer nodes, the random operators in their order; nothing left the second time."""
    module, tensors, alive = differentiated(name)
    before = lines(module)
    optimized = optimize(module, tensors, rng="torch")
    assert lines(module) == before
    check(optimized.module)
    ours, theirs = results(optimized.module, *tensors), results(module, *tensors)
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    assert all(torch.allclose(a, b, rtol=2e-6, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    if name not in REASSOCIATED:  # a sum of one element loses the sign of a zero, hence == and not the bits
        ours = results(optimize(module, tensors, rng="torch", skip=("merge_sums",)).module, *tensors)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(optimized.module.graph.nodes) < len(module.graph.nodes)
    drawn = [sum(is_random(node) for node in m.graph.nodes) for m in (optimized.module, module)]
    assert drawn[0] == drawn[1]
    again = optimize(optimized.module, tensors, rng="torch")
    assert not any(record.changed for record in again.report.records)
    for record in optimized.report.records:
        assert record.changed or record.before == record.after
    assert alive.specializations


@pytest.mark.parametrize("name", ["categorical_latents", "dropout"])
def test_other_numbers_with_rng_fast(name: str) -> None:
    module, tensors, _ = differentiated(name)
    optimized = optimize(module, tensors, rng="fast")
    assert optimized.report.records[1].changed
    assert {str(node.target) for node in optimized.module.graph.nodes if is_random(node)} <= {
        "aten.rand.default",
        "aten.randn.default",
    }
    assert torch.isfinite(results(optimized.module, *tensors)[0])
    assert not any(record.changed for record in optimize(optimized.module, tensors, rng="fast").report.records)


def adam_step(weight: Tensor, mean: Tensor, square: Tensor, count: Tensor, x: Tensor) -> list[Tensor]:
    """Gradient and Adam in one graph, as torch's own optimizers write it: in place, one after another."""
    noise = torch.empty(3).normal_()
    leaf = weight.detach().requires_grad_()
    loss = ((leaf * x + noise) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, [leaf])
    count.add_(1)
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    denominator = (square / (1 - 0.999**count)).sqrt().add_(1e-8)
    weight.addcdiv_(mean / (1 - 0.9**count), denominator, value=-0.01)
    return [loss.detach()]


def test_a_whole_step() -> None:
    state = [X, torch.zeros(3), torch.zeros(3), torch.tensor(0.0), torch.ones(3)]
    module = trace(adam_step, state)
    optimized = optimize(module, state)
    assert [line.split(" = ")[1].split(",")[0] for line in lines(optimized.module) if "copy_" in line] == [
        "copy_(weight_1",
        "copy_(mean_1",
        "copy_(square_1",
        "copy_(count_1",
    ]
    ours, theirs = [t.clone() for t in state], [t.clone() for t in state]
    for seed in range(3):
        torch.manual_seed(seed)
        mine = optimized.module(*ours)
        torch.manual_seed(seed)
        yours = adam_step(*theirs)
        assert equal([*mine, *ours], [*yours, *theirs])


def test_the_report_is_a_table() -> None:
    module = traced(lambda x: [(x * 1).exp(), torch.ones(3) + x], X)
    optimized = optimize(module, [X])
    title, *rows = str(optimized.report).splitlines()
    assert title == "pass                         before  after"
    assert rows[1:5] == [
        "lower_samplers                    6      6  unchanged",
        "fold_constants                    6      6",
        "merge_constants                   6      6  unchanged",
        "remove_identities                 6      5",
    ]
    assert [row.split()[0] for row in rows] == list(PASSES)


@pytest.mark.parametrize("name", PASSES)
def test_each_pass_can_be_left_out(name: str) -> None:
    module, tensors, _ = differentiated("written_in_place")
    optimized = optimize(module, tensors, skip=[name])
    records = [record for record in optimized.report.records if record.name == name]
    assert records and all(not record.changed and record.skipped == "skipped" for record in records)
    ours, theirs = results(optimized.module, *tensors), results(module, *tensors)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    if name == "functionalise":
        free = ("functionalise", "drop_dead_nodes")
        others = [record.skipped for record in optimized.report.records if record.name not in free]
        assert set(others) == {"skipped: the graph writes into tensors"}


def test_an_unknown_pass() -> None:
    with pytest.raises(ArgumentError, match=r"no pass fuse(.|\n)*fold_constants"):
        optimize(traced(lambda x: [x], X), [X], skip=["fuse"])


def test_values_are_found_where_the_nodes_have_none() -> None:
    module = traced(lambda x: [(x * 1).exp()], X)
    for node in module.graph.nodes:
        node.meta.pop("val", None)
    assert len(optimize(module, [X]).module.graph.nodes) == 3


def test_broken_modules_are_named() -> None:
    module = traced(lambda x: [x.exp() + 1], X)
    exp, add = (node for node in module.graph.nodes if node.op == "call_function")
    exp.target = torch.ops.aten.exp_.default
    del add.meta["val"]
    with pytest.raises(
        ModuleError, match=r"add has no value in its meta\n  - exp \(aten.exp_.default\) writes into x0"
    ):
        check(module)
    module = traced(lambda x: [x.exp() + 1], X)
    exp, add = (node for node in module.graph.nodes if node.op == "call_function")
    add.append(exp)
    with pytest.raises(ModuleError, match="fx: "):
        check(module)


def test_a_pass_that_leaves_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def stray(module: fx.GraphModule, rng: Any) -> bool:
        (exp,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.exp.default)
        with module.graph.inserting_after(exp):
            zeros = module.graph.call_function(torch.ops.aten.zeros.default, ([],), {"device": torch.device("meta")})
        zeros.meta.update(val=torch.zeros((), device="meta"), sgc="log p(z)")
        return True

    module = traced(lambda x: [x.exp() + 1], X)
    monkeypatch.setitem(PASSES, "fold_constants", stray)
    with pytest.raises(ModuleError, match=r"zeros_default \(log p\(z\)\) is on meta, where the module had nothing"):
        optimize(module, [X])


def test_a_literal_on_another_device_than_its_node_says_is_named() -> None:
    module = traced(lambda x: [x + torch.tensor([1.0, 2.0, 3.0])], torch.zeros(3))
    (node,) = module.graph.find_nodes(op="get_attr")
    setattr(module, node.target, torch.zeros(3, device="meta"))
    with pytest.raises(ModuleError, match="holds a tensor on meta and stands for one on cpu"):
        check(module)


def test_the_eager_backend_runs_what_was_traced_and_torchscript_what_was_rewritten() -> None:
    module, tensors, _ = differentiated("beta_bernoulli")
    eager, script = (build(module, tensors, backend, "fast") for backend in ("eager", "torchscript"))
    assert eager.run is module and eager.module is module and not eager.report.records
    assert len(script.module.graph.nodes) < len(module.graph.nodes)
    assert {record.name for record in script.report.records} == set(PASSES)
    outcomes = []
    for built in (eager, script):
        pyro.set_rng_seed(4)
        with torch.no_grad():
            outcomes.append(list(built.run(*tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_profile() -> None:
    loss_module = sgc.compile(*local_switches(), backend="torchscript").initialize(X)
    with pytest.raises(sgc.errors.SgcError, match="nothing has been compiled yet"):
        loss_module.profile()
    loss_module(X)
    with torch.no_grad():
        loss_module(X)
    text = loss_module.profile()
    assert text.startswith("loss and gradients, torchscript\npass ") and "\n\nloss alone, torchscript\npass " in text
    assert all(text.count(name) == 2 for name in PASSES)
