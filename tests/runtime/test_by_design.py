"""``verify`` tells faults of Pyro's from errors of sgc's, by what Pyro gives without them."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.graph.meta_keys import ABOUT
from sgc.runtime.parity.by_design import WRITES, Fault
from tests.reference.zoo import ZOO

Program = tuple[Callable[[], Any], Callable[[], Any]]


def switch(*shape: int) -> Tensor:
    return pyro.sample("b", dist.Bernoulli(torch.full(shape, 0.5)).to_event(len(shape)))


def below_a_switch(model: Any, guide: Callable[[Tensor], Any], *shape: int) -> Program:
    """A latent site whose parameters in the guide depend on a discrete one."""

    def run_model() -> None:
        switch(*shape)
        pyro.sample("h", model)

    def run_guide() -> None:
        pyro.sample("h", guide(switch(*shape)))

    return run_model, run_guide


def param(*values: float) -> Tensor:
    return pyro.param("w", torch.tensor(values) if len(values) > 1 else torch.tensor(values[0]))


def beta() -> Program:
    return below_a_switch(dist.Beta(2.0, 1.0), lambda b: dist.Beta(param(0.3).exp() + b, 1.5))


def dirichlet_in_a_plate() -> Program:
    """A Dirichlet in a plate, below switches of that plate."""

    def model() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("h", dist.Dirichlet(torch.ones(3)))

    def guide() -> None:
        with pyro.plate("rows", 2):
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("h", dist.Dirichlet(param(0.1, 0.2, 0.3).exp() + b.unsqueeze(-1)))

    return model, guide


class Cubed(torch.autograd.Function):
    """A function whose gradient is not that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


def function_of_the_users() -> Program:
    def model() -> None:
        pyro.sample("x", dist.Normal(Cubed.apply(param(0.8) + switch()), 1.0), obs=torch.tensor(1.0))

    return model, lambda: switch()


def exponential() -> Program:
    return below_a_switch(
        dist.Exponential(torch.ones(3)).to_event(1), lambda b: dist.Exponential(param(0.3).exp() + b).to_event(1), 3
    )


def laplace_below_laplace() -> Program:
    """Two of them: what is drawn after the first differs, too."""

    def run(first: Any, second: Callable[[Tensor], Any]) -> None:
        b = switch(2)
        h = pyro.sample("h", first(b))
        pyro.sample("i", second(h))

    def normal(loc: Tensor) -> Any:
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def laplace(loc: Tensor) -> Any:
        return dist.Laplace(loc, param(0.2).exp()).to_event(1)

    return lambda: run(normal, normal), lambda: run(laplace, laplace)


def geometric() -> Program:
    return below_a_switch(
        dist.Geometric(torch.full((4,), 0.5)).to_event(1), lambda b: dist.Geometric(0.2 + 0.5 * b).to_event(1), 4
    )


def copied() -> Program:
    def model() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = torch.tensor(pyro.sample("b", dist.Bernoulli(0.5)))
        pyro.sample("x", dist.Normal(2 * copy, 1.0), obs=torch.tensor(1.0))

    return model, lambda: pyro.sample("b", dist.Bernoulli(logits=param(0.4)))


def made_of_samples() -> Program:
    def model() -> None:
        b, c = pyro.sample("b", dist.Bernoulli(0.5)), pyro.sample("c", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(torch.tensor([b, c, 1.0]).sum(), 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=param(0.4)))
        pyro.sample("c", dist.Bernoulli(logits=param(0.4)))

    return model, guide


def straight_through() -> Program:
    """A baseline that is trained by Pyro and subtracted from nothing."""
    net = nn.Linear(1, 1)

    def model() -> None:
        h = pyro.sample("h", dist.OneHotCategorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(h[..., 0], 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        value = net(torch.ones(1)).squeeze()
        family = dist.OneHotCategoricalStraightThrough(logits=param(0.1, 0.2, -0.3))
        pyro.sample("h", family, infer={"baseline": {"baseline_value": value}})

    return model, guide


FUNCTION = "loses the gradient of"
CONSTRUCTOR = "Tensor.new of Pyro's ProvenanceTensor makes 1 random number of a batch"
CASES: dict[Callable[[], Program], tuple[str, str]] = {
    beta: (f"'h' (Beta) is below b, where Pyro's ProvenanceTensor {FUNCTION} _Dirichlet", "w"),
    dirichlet_in_a_plate: (f"'h' (Dirichlet) is below b, where Pyro's ProvenanceTensor {FUNCTION}", "w"),
    function_of_the_users: (f"is below b, where Pyro's ProvenanceTensor {FUNCTION} Cubed", "w"),
    exponential: (f"'h' (Exponential) is below b, where {CONSTRUCTOR} of shape [3]", "h"),
    laplace_below_laplace: (f"'i' (Laplace) is below b, where {CONSTRUCTOR} of shape [2]", "i"),
    geometric: (f"'h' (Geometric) is below b, where {CONSTRUCTOR} of shape [4]", "h"),
    copied: ("log p(x) depends on b; Pyro's provenance loses that", "w"),
    made_of_samples: ("log p(x) depends on b, c; Pyro's provenance loses that", "w"),
    straight_through: ("'h' is pathwise in the guide, so that its baseline is subtracted from nothing", "weight"),
}


def compiled(make: Callable[[], Program], **options: Any) -> sgc.LossModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sgc.compile(*make(), backend="eager", **options).initialize()


@pytest.mark.parametrize("options", [{}, {"num_particles": 2}], ids=["", "particles"])
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_differs_is_said_with_its_reason(make: Callable[[], Program], options: dict[str, Any]) -> None:
    text, name = CASES[make]
    module = compiled(make, **options)
    state = torch.get_rng_state()
    report = module.verify()
    assert report.ok and "DIFFERENT" not in str(report), str(report)
    assert any(text in reason.text and any(name in row for row in reason.names) for reason in report.reasons)
    assert set().union(*(reason.names for reason in report.reasons)) == {
        row.name for row in (report.loss, *report.sites, *report.gradients) if row.by_design
    }
    assert text in str(report) and "see docs/pyro-differences.md#" in str(report)
    assert torch.equal(torch.get_rng_state(), state)


def spoil(module: sgc.LossModule, name: str) -> None:
    """Let the last node of that name in the emitted module give three times what it should."""
    emitted = module.specializations[-1].emitted.module
    *_, node = (node for node in emitted.graph.nodes if ABOUT.of(node) == name)
    with emitted.graph.inserting_after(node):
        spoilt = emitted.graph.call_function(torch.mul, (node, 3.0))
    node.replace_all_uses_with(spoilt, delete_user_cb=lambda user: user is not spoilt)
    emitted.recompile()


@pytest.mark.parametrize(("make", "node"), [(beta, "surrogate"), (exponential, "elbo"), (copied, "surrogate")])
def test_an_error_in_such_a_program_is_different(make: Callable[[], Program], node: str) -> None:
    module = compiled(make)
    spoil(module, node)
    report = module.verify()
    assert not report and "DIFFERENT" in str(report)
    rows = (report.loss, *report.sites, *report.gradients)
    assert any(not row.by_design and not row.within(report.tolerance) for row in rows)


def test_an_error_where_pyro_has_no_fault_has_no_reason() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(switch(), 1.0), obs=torch.tensor(1.0))

    program = model, lambda: pyro.sample("b", dist.Bernoulli(logits=param(0.4)))
    assert compiled(lambda: program).verify()
    module = compiled(lambda: program)
    spoil(module, "surrogate")
    report = module.verify()
    assert not report and not report.reasons


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.differs], ids=lambda entry: entry.name)
def test_every_such_program_of_the_zoo_is_explained(entry: Any) -> None:
    pyro.set_rng_seed(0)
    case = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = sgc.compile(case.model, case.guide, backend="eager", **case.options)
        report = module.initialize(*case.args, **case.kwargs).verify(*case.args, **case.kwargs)
    assert report and report.reasons, str(report)


def test_the_docs_have_a_section_for_each_fault() -> None:
    page = pathlib.Path(__file__).parents[2] / "docs" / "pyro-differences.md"
    headings = {line.removeprefix("## ") for line in page.read_text().splitlines() if line.startswith("## ")}
    assert headings.issuperset([fault.value for fault in Fault] + [WRITES])
