"""The stages of a compilation: what each has given, how it prints, and what is kept of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, fx

import sgc
from sgc.config import Rng
from sgc.emit.backends.registry import registered
from sgc.emit.backends.torchscript import TorchScript
from sgc.emit.differentiate import Differentiated
from sgc.emit.emitter import Emitted
from sgc.emit.rewrites.optimize import Optimized
from sgc.errors import SgcError
from sgc.graph.graph import StochasticGraph
from sgc.runtime.autograd import Compiled
from sgc.runtime.inspection.program_text import Rewritten, program_text
from sgc.tracing.declare import Capture
from sgc.tracing.prototype import Prototype, PrototypeRun

X = torch.tensor([0.3, -0.2])


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.tensor(0.25), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))


def test_there_are_none_before_the_first_call() -> None:
    with pytest.raises(SgcError, match="nothing has been captured yet"):
        sgc.compile(model, guide).stages()


def test_they_grow_with_what_is_compiled() -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(X)
    first = {"prototype": Prototype, "capture": Capture, "graph": StochasticGraph, "emitted": Emitted}
    stages = module.stages()
    assert {name: type(artefact) for name, artefact in stages.items()} == first
    with torch.no_grad():
        module(X)
    assert [*module.stages()] == [*first, "optimized: loss alone, eager", "compiled: loss alone, eager"]
    module(X).backward()
    stages = module.stages()
    kinds = [*first.values(), Differentiated, Rewritten, Compiled, Rewritten, Compiled]
    assert [type(artefact) for artefact in stages.values()] == kinds and len(stages) == 9
    assert stages["graph"] is module.graph and stages["emitted"].module is module.module
    assert not isinstance(stages["prototype"], PrototypeRun)  # that holds the memory of the run
    with pytest.raises(KeyError):
        stages["optimized: loss alone, torchscript"]


def test_each_prints_one_program() -> None:
    module = sgc.compile(model, guide, backend="torchscript")
    module(X).backward()
    stages = module.stages()
    parts = dict(part.split("\n", 1) for part in str(stages).removeprefix("-- ").split("\n-- "))
    assert [*parts] == [*stages]
    assert parts["prototype"] == "parameters: loc"
    assert parts["graph"] == str(module.graph)
    assert "0.25" in parts["capture"] and "lift_fresh_copy" not in parts["capture"] + parts["emitted"]
    assert "surrogate_loss = neg(" in parts["emitted"] and "surrogate_loss" not in parts["differentiated"]
    lengths = [parts[name].count("\n") for name in ("differentiated", "optimized: loss and gradients, torchscript")]
    assert lengths[1] < lengths[0]
    assert parts["compiled: loss and gradients, torchscript"] == (
        "a callable that gives the loss and 1 gradient, called 1 time"
    )


def test_a_program_in_short() -> None:
    def step(x: Tensor) -> list[Tensor]:
        y = x.detach().clone().mul_(2)
        torch.ops.aten._assert_async.msg(y.sum() > 0, "not positive")
        return [torch.full_like(y, 0.1234567890123), torch.stack([x, y]).sum(0, keepdim=True)]

    graph = fx.symbolic_trace(lambda x: x)
    assert program_text(graph) == "(x) ->\n  return x"
    from torch.fx.experimental.proxy_tensor import make_fx

    assert program_text(make_fx(step, tracing_mode="fake")(torch.ones(2))) == "\n".join(
        [
            "(x_1) ->",
            "  clone = clone(x_1)",
            "  mul_ = mul_(clone, 2)",
            "  sum_1 = sum(mul_)",
            "  gt = gt(sum_1, 0)",
            "  _assert_async(gt, not positive)",
            "  full_like = full_like(mul_, 0.123457)",
            "  stack = stack([x_1, mul_])",
            "  sum_2 = sum(stack, [0], True)",
            "  return [full_like, sum_2]",
        ]
    )


def test_no_module_is_kept_that_nothing_runs() -> None:
    """Of what was rewritten the text is kept; of the eager backend the module, which is the one that runs."""
    rewritten: list[weakref.ref[fx.GraphModule]] = []

    class Noting(TorchScript):
        def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
            optimized = super().after_gradient(module, examples, rng)
            rewritten.append(weakref.ref(optimized.module))
            return optimized

    with registered(Noting()):
        module = sgc.compile(model, guide, backend="torchscript")
        module(X).backward()
    gc.collect()
    assert [known() for known in rewritten] == [None]
    assert isinstance(module.stages()["optimized: loss and gradients, torchscript"].program, str)
    eager = sgc.compile(model, guide, backend="eager")
    eager(X).backward()
    stages = eager.stages()
    assert stages["optimized: loss and gradients, eager"].program is stages["compiled: loss and gradients, eager"].run


def test_what_a_call_would_run_can_be_asked_for() -> None:
    module = sgc.compile(model, guide, backend="eager")
    specialization, inputs = module.specialization_for(X)
    assert module.specializations == (specialization,)
    assert {declared.name for declared in specialization.inputs} == {"args[0]", "loc"}
    assert any(tensor is X for tensor in inputs) and any(tensor is pyro.param("loc") for tensor in inputs)
    assert module.specialization_for(X)[0] is specialization
    assert module.specialization_for(torch.ones(3))[0] is not specialization
