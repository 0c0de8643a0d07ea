"""``"auto"`` at sites whose values can be listed: whether they are enumerated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.runtime.variance import enumeration_choice
from tests.runtime.sites_that_ask import DATA, UnlistedBernoulli


def model(data: Tensor) -> None:
    with pyro.plate("rows", len(data)):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        on = pyro.sample("on", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9])[kind]))
        pyro.sample("x", dist.Normal(2.0 * on + kind, 0.7), obs=data)


def guided(below: Callable[..., Any] = dist.Bernoulli) -> Callable[[Tensor], None]:
    def guide(data: Tensor) -> None:
        logits, on = pyro.param("logits", torch.tensor([0.1, 0.3, -0.2])), pyro.param("on_logit", torch.tensor(0.2))
        with pyro.plate("rows", len(data)):
            kind = pyro.sample("kind", dist.Categorical(logits=logits))
            pyro.sample("on", below(logits=on * kind))

    return guide


def asked(guide: Callable[..., None], estimators: Any, **options: Any) -> sgc.LossModule:
    pyro.clear_param_store()
    return sgc.compile(model, guide, backend="eager", estimators=estimators, **options).initialize(DATA)


def test_all_that_can_be_enumerated_is() -> None:
    """Nothing is left of the variance; the choice is kept, told, and the same program as with the option."""
    module = asked(guided(), {"*": "auto"})
    choice = module.choice()
    assert choice.estimators == {"kind": "enumerate", "on": "enumerate"}
    assert choice.variance < 1e-9 * choice.site("kind").candidate("score function").variance
    assert choice.site("on").candidate("enumerate").variance == choice.variance
    assert module.graph.is_measured("kind") and "by enumeration, chosen by measurement: its 3 values" in str(
        module.graph
    )
    text = str(choice)
    assert "enumerate" in text and "decaying average" in text and "time of a step" in text
    assert module.verify(DATA)
    first = module(DATA)
    assert torch.equal(first, asked(guided(), dict(choice.estimators))(DATA))
    module(DATA[:2])
    assert module.choice() is choice and module.graph.is_measured("on")


def test_a_site_below_has_the_baseline_that_is_best_then() -> None:
    module = asked(guided(UnlistedBernoulli), {"*": "auto"}, num_particles=2)
    choice = module.choice()
    assert choice.site("kind").chosen == "enumerate"
    assert {c.name for c in choice.site("on").candidates} == {"score function", "decaying average", "leave-one-out"}
    assert choice.variance == choice.site("on").candidate(choice.site("on").chosen).variance
    assert module.graph.estimator("on").value == "score function"
    assert module.verify(DATA)


def test_what_cannot_be_enumerated_is_told() -> None:
    """A density outside of the plate depends on all of its elements."""

    def joint(data: Tensor) -> None:
        with pyro.plate("rows", len(data)):
            on = pyro.sample("on", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(on.sum(-1, keepdim=True), 1.0).to_event(0), obs=data[:1])

    def guide(data: Tensor) -> None:
        with pyro.plate("rows", len(data)):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("on_logit", torch.tensor(0.2))))

    module = sgc.compile(joint, guide, backend="eager", estimators={"on": "auto"}).initialize(DATA)
    choice = module.choice()
    assert choice.site("on").chosen != "enumerate"
    (note,) = choice.notes
    assert note.startswith(
        "on cannot be enumerated: at site 'x': log p(x) depends on all 3 elements of 'on' in plate 'rows'"
    )
    assert note in str(choice) and "cannot be enumerated" in choice._repr_html_()


def test_large_tables_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration_choice, "_LARGEST", 8)
    choice = asked(guided(), {"*": "auto"}).choice()
    assert {c.name for c in choice.site("kind").candidates} == {"score function", "decaying average"}
    assert {c.name for c in choice.site("on").candidates} == {"score function", "decaying average", "enumerate"}


def test_time_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a site that leaves as much variance as a baseline does, the faster draft is taken."""
    figures = {(): (2.0, 1.0), ("kind",): (1.0, 1.5), ("on",): (1.0, 4.0), ("kind", "on"): (1.5, 3.0)}

    def choose(specialization: Any, tensors: Any, plan: Any, asking: Any, parameters: Any) -> Any:
        left = set(asking)
        sites = tuple(site for site in ("kind", "on") if site not in left)
        variance, seconds = figures[sites]
        from sgc.runtime.variance.choice_report import Candidate, EstimatorChoice, SiteChoice

        rows = tuple(
            SiteChoice(site, "score function", (Candidate("score function", variance, 1.0),))
            for site in ("kind", "on")
            if site in left
        )
        return EstimatorChoice(rows, (), 40, variance, seconds)

    monkeypatch.setattr(enumeration_choice, "choose", choose)
    choice = asked(guided(), {"*": "auto"}).choice()
    assert choice.estimators == {"kind": "enumerate", "on": "score function"}
    assert (
        choice.site("on").candidate("enumerate").time == 4.0 and choice.site("kind").candidate("enumerate").time == 1.0
    )
