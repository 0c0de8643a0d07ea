"""Entries that a mask below ``to_event`` hides: their score belongs to the gradient just where they reach a cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

import sgc
from tests.statistical.enumerate import binary, categories, exact_gradient, expected_estimate

SEEN = torch.tensor([True, False, True])
OTHER = torch.tensor([True, True, False])
X = torch.tensor([0.7, -0.4, 1.3])
Form = Callable[[Any, bool], Any]
Use = Callable[[Any, Tensor], Any]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def shown(base: Any, masked: bool, *masks: Any) -> Any:
    for mask in masks if masked else ():
        base = base.mask(mask)
    return base


def below(base: Any, masked: bool) -> Any:
    return shown(base, masked, SEEN).to_event(1)


def written_anew(base: Any, masked: bool) -> Any:
    return shown(base, masked, torch.tensor([1, 0, 1])).to_event(1)


def two_masks(base: Any, masked: bool) -> Any:
    return shown(base, masked, SEEN, OTHER).to_event(1)


def beside_true(base: Any, masked: bool) -> Any:
    return shown(base, masked, True, SEEN, True).to_event(1)


def false(base: Any, masked: bool) -> Any:
    return shown(base, masked, False).to_event(1)


def event_twice(base: Any, masked: bool) -> Any:
    return shown(base.expand((1, 3)), masked, SEEN).to_event(1).to_event(1)


def events_around(base: Any, masked: bool) -> Any:
    return shown(shown(base.expand((1, 3)), masked, SEEN).to_event(1), masked, torch.tensor([True])).to_event(1)


def outside(base: Any, masked: bool) -> Any:
    return shown(base.to_event(1), masked, torch.tensor(False))


def outside_and_below(base: Any, masked: bool) -> Any:
    return shown(shown(base, masked, SEEN).to_event(1), masked, torch.tensor(False))


def expanded(base: Any, masked: bool) -> Any:
    return ExpandedDistribution(shown(base, masked, SEEN).to_event(1), torch.Size([])).to_event(0)


def repeated(base: Any, masked: bool) -> Any:
    return ExpandedDistribution(shown(base, masked, SEEN), torch.Size([2, 3])).to_event(2)


FORMS: dict[str, Form] = {
    form.__name__: form
    for form in (
        *(below, written_anew, two_masks, beside_true, false, event_twice, events_around, outside),
        *(outside_and_below, expanded, repeated),
    )
}


def masked_as_well(z: Tensor, form: Form) -> None:
    pyro.sample("y", form(dist.Normal(z, 1.0), True), obs=X.expand(z.shape))


def scored_and_zeroed(z: Tensor, form: Form) -> None:
    """The hidden entries are in no cost, for each is multiplied by a zero."""
    pyro.sample("y", dist.Normal(z * SEEN * OTHER, 1.0).to_event(z.dim()), obs=X.expand(z.shape))


def summed(z: Tensor, form: Form) -> None:
    pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=X[0])


def another_mask(z: Tensor, form: Form) -> None:
    hidden = torch.tensor([False, True, True])
    pyro.sample("y", dist.Normal(z, 1.0).mask(hidden).to_event(z.dim()), obs=X.expand(z.shape))


def hidden_by_index(z: Tensor, form: Form) -> None:
    pyro.sample("y", dist.Normal(z[..., 1].sum(), 1.0), obs=X[0])


def seen_by_index(z: Tensor, form: Form) -> None:
    pyro.sample("y", dist.Normal(z[..., torch.tensor([0])].sum(), 1.0), obs=X[0])


def moved_and_masked(z: Tensor, form: Form) -> None:
    """Each entry is masked at another one's place."""
    pyro.sample("y", form(dist.Normal(z.roll(1, -1), 1.0), True), obs=X.expand(z.shape))


def written_and_masked(z: Tensor, form: Form) -> None:
    x = torch.zeros(z.shape)
    x[..., 0] = z[..., 1]
    pyro.sample("y", form(dist.Normal(x, 1.0), True), obs=X.expand(z.shape))


USES: dict[str, Any] = {
    use.__name__: use
    for use in (
        *(masked_as_well, scored_and_zeroed, summed, another_mask, hidden_by_index, seen_by_index),
        *(moved_and_masked, written_and_masked),
    )
}


def build(form: Form, use: Any) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Model, guide, and the guide without its masks."""

    def guide(masked: bool) -> None:
        q = pyro.param("q", torch.tensor([0.4, -0.7, 1.1]))
        pyro.sample("z", form(dist.Bernoulli(logits=q), masked))

    def model() -> None:
        prior = dist.Bernoulli(logits=pyro.param("p", torch.tensor([0.2, 0.5, -0.3])))
        use(pyro.sample("z", form(prior, True)), form)

    return model, lambda: guide(True), lambda: guide(False)


def assert_exact(
    model: Callable[[], None], guide: Callable[[], None], drawn: Callable[[], None], supports: dict[str, list[Tensor]]
) -> sgc.LossModule:
    module = sgc.compile(model, guide, backend="eager").initialize()
    leaves = list(module.param_store.parameters())
    exact_loss, exact = exact_gradient(model, guide, (), supports, leaves, drawn)
    loss, estimated = expected_estimate(module, drawn, (), supports, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(estimated, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    return module


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", FORMS)
def test_expected_gradient_is_exact(form: str, use: str) -> None:
    model, guide, drawn = build(FORMS[form], USES[use])
    shape = {"event_twice": (1, 3), "events_around": (1, 3), "repeated": (2, 3)}.get(form, (3,))
    assert_exact(model, guide, drawn, {"z": binary(*shape)})


@pytest.mark.parametrize("form", ["below", "two_masks", "beside_true", "event_twice", "repeated", "expanded"])
def test_what_reaches_no_cost_is_left_out_and_the_gradient_is_pyros(form: str) -> None:
    for use in (masked_as_well, scored_and_zeroed):
        pyro.clear_param_store()
        model, guide, _ = build(FORMS[form], use)
        module = sgc.compile(model, guide, backend="eager").initialize()
        assert not module.graph.scores_hidden_entries("z")
        assert "without hidden entries: they reach no cost" in str(module.graph)
        report = module.verify()
        assert report and not report.reasons


def test_a_mask_with_the_same_numbers_is_the_same() -> None:
    model, guide, _ = build(written_anew, masked_as_well)
    assert not sgc.compile(model, guide, backend="eager").initialize().graph.scores_hidden_entries("z")


@pytest.mark.parametrize("use", ["summed", "another_mask", "hidden_by_index", "moved_and_masked", "written_and_masked"])
def test_what_reaches_a_cost_is_kept_and_verify_says_so(use: str) -> None:
    model, guide, _ = build(below, USES[use])
    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.graph.scores_hidden_entries("z")
    assert "of hidden entries too: they reach a cost" in str(module.graph)
    report = module.verify()
    assert report, str(report)
    (reason,) = (reason for reason in report.reasons if "masked below to_event" in reason.text)
    assert reason.text.startswith("'z' is masked below to_event, and its hidden entries reach a cost")
    assert reason.names == ("q",) and reason.section.endswith("#hidden-entries-below-to_event-that-reach-a-cost")


def test_pyro_is_biased_where_hidden_entries_reach_a_cost() -> None:
    """The expectation of Pyro's estimator, by enumeration too: nothing for the logit of the hidden entry."""
    model, guide, drawn = build(below, summed)
    pyro.infer.TraceGraph_ELBO().loss(model, guide)
    q = pyro.get_param_store()._params["q"]
    _, (exact,) = exact_gradient(model, guide, (), {"z": binary(3)}, [q], drawn)
    expected = torch.zeros(3)
    for z in binary(3):
        weight = dist.Bernoulli(logits=q).log_prob(z).sum().exp().detach()
        trace = pyro.poutine.trace(pyro.poutine.condition(guide, {"z": z})).get_trace()
        score = trace.nodes["z"]["fn"].score_parts(z).score_function
        cost = pyro.poutine.trace(pyro.poutine.condition(model, {"z": z})).get_trace().log_prob_sum() - score
        expected += weight * torch.autograd.grad(-score * cost.detach(), q)[0]
    assert expected[1] == 0 and abs(exact[1]) > 0.1
    assert torch.allclose(expected[[0, 2]], exact[[0, 2]])


def test_entries_with_dims_of_their_own() -> None:
    """A categorical and a one-hot variable are looked up and reduced before they are masked."""
    one_hot = [torch.nn.functional.one_hot(z, 2).double() for z in categories(2, 3)]
    cases: list[tuple[Any, Any, list[Tensor]]] = [
        (dist.Categorical, lambda z: z * 1.0, categories(2, 3)),
        (dist.OneHotCategorical, lambda z: z[..., 0] * 0.0 + 1.0, one_hot),
    ]
    for family, mean, support in cases:
        pyro.clear_param_store()

        def guide(masked: bool, family: Any = family) -> None:
            q = pyro.param("q", torch.linspace(-0.5, 0.6, 6).reshape(3, 2))
            pyro.sample("z", below(family(logits=q), masked))

        def model(family: Any = family, mean: Any = mean) -> None:
            z = pyro.sample("z", below(family(logits=torch.tensor([0.3, -0.2]).expand(3, 2)), True))
            pyro.sample("y", below(dist.Normal(mean(z), 1.0), True), obs=X)

        module = assert_exact(model, lambda: guide(True), lambda: guide(False), {"z": support})
        if family is dist.Categorical:
            assert not module.graph.scores_hidden_entries("z")
            assert module.verify()


def test_hidden_entries_that_reach_another_sample() -> None:
    def guide(masked: bool) -> None:
        z = pyro.sample("z", below(dist.Bernoulli(logits=pyro.param("q", torch.tensor([0.4, -0.7, 1.1]))), masked))
        pyro.sample("w", dist.Bernoulli(logits=pyro.param("r", torch.tensor(0.3)) * (1 + z[1])))

    def model() -> None:
        z = pyro.sample("z", below(dist.Bernoulli(torch.full((3,), 0.4)), True))
        w = pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("y", below(dist.Normal(z + w, 1.0), True), obs=X)

    module = assert_exact(model, lambda: guide(True), lambda: guide(False), {"z": binary(3), "w": binary()})
    assert module.graph.scores_hidden_entries("z")


def test_a_mask_that_is_written_in_between_is_another_mask() -> None:
    def guide(masked: bool, mask: Tensor) -> None:
        pyro.sample("z", shown(dist.Bernoulli(logits=pyro.param("q", torch.zeros(3))), masked, mask).to_event(1))

    def model(mask: Tensor) -> None:
        mask = mask.clone()
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).mask(mask).to_event(1))
        mask[1] = True
        pyro.sample("y", dist.Normal(z, 1.0).mask(mask).to_event(1), obs=X)

    module = sgc.compile(model, lambda mask: guide(True, mask), backend="eager").initialize(SEEN)
    assert module.graph.scores_hidden_entries("z")
    assert module.verify(SEEN)
