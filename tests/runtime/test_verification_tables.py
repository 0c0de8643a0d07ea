"""The table of a verification: what is repeated is one row, unless it is judged differently."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pytest
import torch

import sgc
from sgc.runtime.parity.verification import Verification
from tests.programs import discrete_chain

STEPS = 6


@pytest.fixture(scope="module")
def report() -> Verification:
    pyro.clear_param_store()
    return sgc.compile(*discrete_chain(STEPS), backend="eager").initialize().verify()


def names(report: Verification) -> list[str]:
    return [line.split("  |difference|")[0].split(maxsplit=2)[2].strip() for line in str(report).splitlines()[1:]]


def test_steps_are_one_row(report: Verification) -> None:
    assert report.ok and len(report.sites) > 3 * STEPS - 1
    folded = names(report)
    assert len(folded) < len(report.sites)
    assert "z_t, t = 0 … 5" in folded and "log p(z_t), t = 0 … 5" in folded and "z_0" not in folded
    assert "z_t, t = 0 … 5" in report._repr_mimebundle_()["text/html"]


def test_the_row_has_the_largest_difference(report: Verification) -> None:
    small, large = (replace(report.sites[at], difference=by) for at, by in ((1, 1e-9), (3, 3e-7)))
    assert {small.name, large.name} == {"z_1", "z_3"}
    changed = replace(report, sites=(report.sites[0], small, report.sites[2], large, *report.sites[4:]))
    (row,) = [line for line in str(changed).splitlines() if " z_t" in line]
    assert changed.ok and "3.00e-07" in row


def test_what_differs_is_told_one_by_one(report: Verification) -> None:
    wrong = replace(report.sites[2], difference=1.0)
    changed = replace(report, sites=(*report.sites[:2], wrong, *report.sites[3:]))
    assert not changed.ok and {f"z_{t}" for t in range(STEPS)} <= set(names(changed))
    assert [line.split()[2] for line in str(changed).splitlines() if line.strip().startswith("!!")] == ["z_2"]
    assert "log p(z_t), t = 0 … 5" in names(changed)


def test_without_a_graph_every_row_is_shown(report: Verification) -> None:
    assert len(names(replace(report, graph=None))) == 1 + len(report.sites) + len(report.gradients)


def test_reasons_that_are_alike_are_told_once() -> None:
    pyro.clear_param_store()
    options = {"estimators": {"*": "decaying average"}}
    module = sgc.compile(*discrete_chain(STEPS), backend="eager", **options)  # type: ignore[arg-type]
    for _ in range(3):  # the averages have to be something
        module()
    report = module.verify()
    assert report.ok and len(report.reasons) == STEPS == len(report.differs_by_design)
    told = [line for line in str(report).splitlines() if line.startswith("  by design: ")]
    assert len(told) == 1 and told[0].endswith(f"(and {STEPS - 1} more reasons of this kind)")
    assert report._repr_mimebundle_()["text/html"].count("more reasons of this kind") == 1


def test_gradients_of_layers_are_one_row() -> None:
    def guide() -> None:
        for t in range(STEPS):
            logit = pyro.param(f"logit_{t}", torch.tensor(0.1))
            pyro.sample(f"z_{t}", pyro.distributions.Bernoulli(logits=logit))

    model, _ = discrete_chain(STEPS)
    pyro.clear_param_store()
    report = sgc.compile(model, guide, backend="eager").initialize().verify()
    assert any(name.startswith("logit_") and name.endswith(" = 0 … 5") for name in names(report))
