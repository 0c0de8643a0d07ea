"""Pyro's own looks at values, in a model's code: they are no branch of the program's."""

import linecache
from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.tracking.assignment import MarginalAssignment, MarginalAssignmentPersistent
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.newton import newton_step
from pyro.util import warn_if_inf, warn_if_nan
from torch import Tensor

import sgc
from sgc.tracing.source import Refusal, _refusals

Term = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def validation() -> Iterator[None]:
    with pyro.validation_enabled():
        yield


def inner_trace(z: Tensor) -> poutine.Trace:
    def inner() -> None:
        pyro.sample("v", dist.Normal(0.0, 1.5))
        pyro.sample("w", dist.Gamma(2.0, 1.0))

    with poutine.block():
        return poutine.trace(poutine.condition(inner, data={"v": z})).get_trace()


def summed(z: Tensor) -> Tensor:
    return torch.as_tensor(inner_trace(z).log_prob_sum())


def computed(z: Tensor) -> Tensor:
    trace = inner_trace(z)
    trace.compute_log_prob()
    return torch.as_tensor(trace.nodes["v"]["log_prob_sum"])


def scored(z: Tensor) -> Tensor:
    trace = inner_trace(z)
    trace.compute_score_parts()
    return torch.as_tensor(trace.nodes["w"]["score_parts"].log_prob)


def warned(z: Tensor) -> Tensor:
    warn_if_inf(torch.ones(2) * z, "several")
    return warn_if_inf(warn_if_nan(z, "one"), "one", allow_posinf=True)


def newton(size: int) -> Term:
    def step(z: Tensor) -> Tensor:
        x = (0.1 * torch.arange(1.0, size + 1)).requires_grad_()
        minimum, _ = newton_step(((x - z) ** 2).sum() + (x**4).sum(), x, trust_radius=1.0)
        return minimum.sum()

    return step


def assigned(z: Tensor) -> Tensor:
    made = MarginalAssignment(z * torch.ones(3), torch.full((2, 3), 0.1) * z, bp_iters=3)
    kept = MarginalAssignmentPersistent(torch.ones(2) * z, torch.full((2, 3, 2), 0.1) * z, bp_iters=3)
    return torch.as_tensor(made.exists_dist.probs.sum() + kept.exists_dist.probs.sum())


def centred(z: Tensor) -> Tensor:
    with poutine.reparam(config={"y": LocScaleReparam(torch.sigmoid(z))}):
        return pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.3))


def powered(z: Tensor) -> Tensor:
    return torch.as_tensor(dist.transforms.PositivePowerTransform(z.abs() + 1.0)(z.abs()))


def skewed(z: Tensor) -> Tensor:
    base = dist.VonMises(torch.zeros(1), torch.ones(1)).to_event(1)
    return torch.as_tensor(dist.SineSkewed(base, 0.3 * torch.tanh(z) * torch.ones(1)).log_prob(torch.ones(1)))


def of_stable(z: Tensor) -> Tensor:
    return torch.as_tensor(dist.Stable(1.5, 0.0, z.abs() + 0.5).log_prob(z))


def with_gaps(z: Tensor) -> Tensor:
    several = dist.NanMaskedMultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(torch.stack([z, z * 2.0]))
    return dist.NanMaskedNormal(0.0, 1.0).log_prob(z) + several


TERMS = [
    *(of_stable, with_gaps, summed, computed, scored, warned, newton(1), newton(2), newton(3), assigned, centred),
    *(powered, skewed),
]


def program(term: Term) -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.2, 0.1))
        pyro.factor("term", 0.1 * term(z))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.1))

    return model, guide


@pytest.mark.parametrize("validate", [None, False])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.__qualname__.partition(".")[0])
def test_a_look_is_no_branch(term: Term, validate: bool | None) -> None:
    model, guide = program(term)
    module = sgc.compile(model, guide, backend="eager", validate=validate).initialize()
    for seed in range(2):
        pyro.set_rng_seed(seed)
        ours = module().item()
        pyro.set_rng_seed(seed)
        assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide), rel=1e-5)
    assert module.verify()
    assert len(module.specializations) == 1 and "read at" not in module.guards()


def test_a_look_that_raises_is_a_check_of_each_call() -> None:
    def scaled(z: Tensor) -> Tensor:
        return torch.as_tensor(dist.transforms.PositivePowerTransform(z + 0.5)(torch.tensor(2.0)))

    model, guide = program(scaled)
    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module().isfinite()
    with torch.no_grad():
        pyro.get_param_store()._params["loc"].fill_(-3.0)
    with pytest.raises(ValueError, match="Expected exponent > 0"):
        module()


def test_a_condition_of_several_parts_is_decided_by_each_or_by_the_last() -> None:
    assert refusals_of("a or\n        b") == {3: False, 4: False}
    assert refusals_of("a and\n        b") == {4: False}
    assert refusals_of("not (a and\n        b)") == {3: True, 4: True}
    assert refusals_of("not (a or\n        b)") == {4: True}
    assert refusals_of("not a\n        or b") == {3: True, 4: False}


def refusals_of(test: str) -> dict[int, bool]:
    """For each line of a condition, the answer that raises nothing."""
    source = f"def f(a, b):\n    if (\n        {test}\n    ):\n        raise ValueError\n"
    name = f"<condition {test}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    namespace: dict[str, Callable[..., None]] = {}
    exec(compile(source, name, "exec"), namespace)
    found: dict[int, Refusal] = _refusals(namespace["f"].__code__)
    return {line: refusal.passes for line, refusal in found.items()}
