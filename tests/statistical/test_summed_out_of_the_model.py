"""Sites of the model alone, summed out beside sites that are drawn: exact in expectation, with no more variance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

import sgc
from sgc.graph.enumeration_nodes import MarginalCostNode
from tests.statistical.enumerate import (
    Supports,
    binary,
    categories,
    estimates_of_particles,
    log_joint,
    moments,
    outcomes,
    weighted_estimates,
)
from tests.statistical.test_enumerated_sites import line

AVERAGE = {"baseline": {"use_decaying_avg_baseline": True}}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


@dataclass(frozen=True)
class Program:
    """Model and guide; all values of what the guide draws, and of what is summed out of the model.

    ``counts`` says how many values an element of each drawn site has, ``scale`` what all densities are scaled by.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    drawn: Supports
    summed: Supports
    counts: dict[str, int]
    scale: float = 1.0
    enumerated: tuple[str, ...] = field(default=())

    def compiled(self, **options: Any) -> sgc.LossModule:
        model, guide = (poutine.scale(part, self.scale) for part in (self.model, self.guide))
        asked = dict.fromkeys(self.enumerated, "enumerate")
        return sgc.compile(model, guide, backend="eager", estimators=asked, **options)

    def exact(self, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The sum over all that is drawn of q (log q - log sum p), and its gradient."""
        loss = torch.zeros(())
        for values in outcomes(self.drawn):
            log_q = log_joint(self.guide, self.args, values)
            joint = [log_joint(self.model, self.args, {**values, **others}) for others in outcomes(self.summed)]
            loss = loss + log_q.exp() * self.scale * (log_q - torch.stack(joint).logsumexp(0))
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        return loss.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)]


def mixture() -> Program:
    """Assignments in a plate, below a switch that is drawn: one of two sets of components."""

    @config_enumerate
    def model(x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(0.4))
        locs = torch.stack([line("low", 3), 2 * line("high", 3)])
        with pyro.plate("d", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=line("w", 3)))
            pyro.sample("x", dist.Normal(Vindex(locs)[s.long(), z], 0.8), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("s", dist.Bernoulli(logits=line("a")), infer=AVERAGE)

    return Program(model, guide, (torch.tensor([0.3, -0.5]),), {"s": binary()}, {"z": categories(3, 2)}, {"s": 2})


def a_kind_of_all_rows() -> Program:
    """Outside of the plate in which the guide draws: the sum is over all rows jointly; one is masked, all scaled."""
    mask = torch.tensor([True, False, True])

    def model(x: Tensor) -> None:
        c = pyro.sample("c", dist.Categorical(logits=line("prior", 2)), infer={"enumerate": "parallel"})
        with pyro.plate("d", 3):
            w = pyro.sample("w", dist.Bernoulli(torch.sigmoid(line("on", 2))[c]))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(w + 0.7 * c, 1.0), obs=x)
        pyro.sample("y", dist.Normal(line("y_loc", 2)[c], 1.0), obs=torch.tensor(0.1))

    def guide(x: Tensor) -> None:
        with pyro.plate("d", 3):
            pyro.sample("w", dist.Bernoulli(logits=line("a", 3)), infer=AVERAGE)

    x = torch.tensor([0.3, -0.5, 1.2])
    return Program(model, guide, (x,), {"w": binary(3)}, {"c": categories(2)}, {"w": 2}, scale=2.5)


def documents() -> Program:
    """Nested plates: a label of each document is drawn, the topics of words are summed out, and a style of all."""

    def model(words: Tensor) -> None:
        style = pyro.sample("style", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("documents", 2, dim=-2):
            label = pyro.sample("label", dist.Bernoulli(0.2 + 0.5 * style))
            with pyro.plate("words", 2, dim=-1):
                logits = line("topics", 2, 2)[label.long()]
                topic = pyro.sample("topic", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(logits=Vindex(line("vocabulary", 2, 3))[topic]), obs=words)

    def guide(words: Tensor) -> None:
        with pyro.plate("documents", 2, dim=-2):
            pyro.sample("label", dist.Bernoulli(logits=line("a", 2, 1)), infer=AVERAGE)

    summed = {"style": binary(), "topic": categories(2, 2, 2)}
    words = torch.tensor([[0, 2], [1, 0]])
    return Program(model, guide, (words,), {"label": binary(2, 1)}, summed, {"label": 2})


def chain() -> Program:
    """A hidden Markov model, with a regime above it and a switch beside its last step, both drawn."""

    def model(x: Tensor) -> None:
        regime = pyro.sample("regime", dist.Bernoulli(0.4))
        moves = torch.softmax(line("moves", 2, 2, 2), -1)
        state: Any = torch.tensor(0)
        for t in pyro.markov(range(4)):
            probs = Vindex(moves)[regime.long(), state]
            state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(line("levels", 2)[state], 1.0), obs=x[t])
            if t == 3:
                pyro.sample("last", dist.Bernoulli(torch.tensor([0.2, 0.7])[state]))

    def guide(x: Tensor) -> None:
        regime = pyro.sample("regime", dist.Bernoulli(logits=line("a")))
        pyro.sample("last", dist.Bernoulli(logits=line("b", 2)[regime.long()]), infer=AVERAGE)

    summed = {f"state_{t}": categories(2) for t in range(4)}
    x = torch.tensor([0.3, -0.5, 1.2, 0.9])
    return Program(model, guide, (x,), {"regime": binary(), "last": binary()}, summed, {"regime": 2, "last": 2})


def below_an_enumerated_one() -> Program:
    """The guide enumerates a kind, draws a switch below it; what is summed out of the model depends on both."""

    def model() -> None:
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        s = pyro.sample("s", dist.Bernoulli(torch.tensor([0.3, 0.6, 0.2])[kind]))
        with pyro.plate("d", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.sigmoid(line("prior", 3))[kind]))
            pyro.sample("x", dist.Normal(line("scale") * z + s - kind, 1.0), obs=torch.tensor([0.2, 0.9]))

    def guide() -> None:
        kind = pyro.sample("kind", dist.Categorical(logits=line("a", 3)))
        pyro.sample("s", dist.Bernoulli(logits=line("b", 3)[kind]), infer=AVERAGE)

    drawn = {"kind": categories(3), "s": binary()}
    return Program(model, guide, (), drawn, {"z": binary(2)}, {"s": 2}, enumerated=("kind", "z"))


def above_an_enumerated_one() -> Program:
    """In the model the kind is below what is summed out, in a plate; another site is summed out by itself."""

    def model() -> None:
        with pyro.plate("d", 2):
            c = pyro.sample("c", dist.Categorical(logits=line("prior", 2)))
            kind = pyro.sample("kind", dist.Categorical(torch.softmax(line("kinds", 2, 3), -1)[c]))
            pyro.sample("x", dist.Normal(kind - 0.3 * c, 1.0), obs=torch.tensor([0.2, 0.9]))
        s = pyro.sample("s", dist.Bernoulli(0.4))
        e = pyro.sample("e", dist.Bernoulli(0.2 + 0.5 * s))
        pyro.sample("y", dist.Normal(e * line("gain"), 1.0), obs=torch.tensor(0.8))

    def guide() -> None:
        with pyro.plate("d", 2):
            pyro.sample("kind", dist.Categorical(logits=line("a", 3)))
        pyro.sample("s", dist.Bernoulli(logits=line("b")))

    drawn = {"kind": categories(3, 2), "s": binary()}
    summed = {"c": categories(2, 2), "e": binary()}
    return Program(model, guide, (), drawn, summed, {"s": 2}, enumerated=("kind", "c", "e"))


def beside_a_chain_of_the_guide() -> Program:
    """The guide enumerates a chain, whose steps share two dims, below a switch; one site of each step is summed out."""

    def model() -> None:
        s = pyro.sample("s", dist.Bernoulli(0.4))
        z: Any = torch.tensor(0)
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Categorical(torch.tensor([[0.6, 0.4], [0.3, 0.7]])[z]))
            e = pyro.sample(f"e{t}", dist.Bernoulli(torch.sigmoid(line("emit", 2))[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(2 * e - s, 1.0), obs=torch.tensor(0.5 + t))

    def guide() -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=line("a")))
        z: Any = torch.tensor(0)
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Categorical(logits=line(f"b{t}", 2, 2)[z] * (1 + s)))

    drawn = {"s": binary(), **{f"z{t}": categories(2) for t in range(3)}}
    summed = {f"e{t}": binary() for t in range(3)}
    return Program(model, guide, (), drawn, summed, {"s": 2}, enumerated=("z0", "z1", "z2"))


PROGRAMS = (
    mixture,
    a_kind_of_all_rows,
    documents,
    chain,
    below_an_enumerated_one,
    above_an_enumerated_one,
    beside_a_chain_of_the_guide,
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_value_and_gradients_are_exact_in_expectation(program: Callable[[], Program]) -> None:
    """Of baselines too, and by an eager computation of another making."""
    case = program()
    module = case.compiled()
    leaves = list(module.initialize(*case.args).param_store.parameters())
    exact_loss, exact = case.exact(leaves)
    loss, gradients, _ = moments(weighted_estimates(module, case.args, case.counts, leaves), leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert {name: module.graph.estimator(name).value for name in case.summed} == dict.fromkeys(
        case.summed, "enumerated"
    )
    assert module.verify(*case.args), module.verify(*case.args)


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("program", [mixture, a_kind_of_all_rows])
def test_leave_one_out_of_two_particles_is_exact(program: Callable[[], Program], vectorised: bool) -> None:
    case = program()
    site = next(iter(case.drawn))
    model, guide = poutine.scale(case.model, case.scale), poutine.scale(case.guide, case.scale)
    options = {"num_particles": 2, "vectorize_particles": vectorised, "estimators": {site: "leave-one-out"}}
    module = sgc.compile(model, guide, backend="eager", **options)
    leaves = list(module.initialize(*case.args).param_store.parameters())
    exact_loss, exact = case.exact(leaves)
    draws = estimates_of_particles(module, case.guide, case.args, case.drawn, leaves)
    loss, gradients, _ = moments(draws, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert module.verify(*case.args), module.verify(*case.args)


def test_a_site_that_is_summed_out_brings_less_variance_than_one_that_is_drawn() -> None:
    """Drawn from its exact posterior, with which the ELBO is the same (Rao-Blackwell)."""
    case = mixture()
    x = case.args[0]

    def guide(x: Tensor) -> None:
        s = pyro.sample("s", dist.Bernoulli(logits=line("a")))
        locs = torch.stack([line("low", 3), 2 * line("high", 3)])[s.long()]
        logits = torch.log_softmax(line("w", 3), -1) + dist.Normal(locs, 0.8).log_prob(x[:, None])
        with pyro.plate("d", 2):
            pyro.sample("z", dist.Categorical(logits=logits.detach()))

    plain = partial(pyro.poutine.infer_config, config_fn=lambda site: {"enumerate": None, "baseline": {}})
    losses, totals = [], []
    for model, guided, counts in (
        (case.model, plain(case.guide), {"s": 2}),
        (plain(case.model), guide, {"s": 2, "z": 3}),
    ):
        module = sgc.compile(model, guided, backend="eager")
        module.initialize(x)
        leaves = [pyro.get_param_store()._params[name] for name in ("low", "high", "w", "a")]
        loss, _, variance = moments(weighted_estimates(module, (x,), counts, leaves), leaves)
        losses.append(float(loss))
        totals.append(float(variance))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert totals[0] < 0.9 * totals[1]


def test_a_cost_of_a_plate_stays_in_it() -> None:
    """A site in a plate is multiplied by its own element of what is summed out within the plate, not by all."""
    graph = documents().compiled().initialize(*documents().args).graph
    styles, topics = sorted(graph.of_type(MarginalCostNode), key=lambda node: node.site)
    assert {*styles.factors} == {"log p(style)", "log p(label)"} and styles.plates == () and styles.shape == ()
    assert {*topics.factors} == {"log p(topic)", "log p(word)"} and topics.shape == (2, 2)
    assert [plate.name for plate in topics.plates] == ["documents", "words"]
    assert graph.downstream_costs("label") == {"-log q(label)", styles.key, topics.key}
    pyro.clear_param_store()
    case = mixture()
    graph = case.compiled().initialize(*case.args).graph
    (marginal,) = graph.of_type(MarginalCostNode)
    assert [plate.name for plate in marginal.plates] == ["d"] and marginal.shape == (2,)
    assert graph.downstream_costs("s") == {"log p(s)", "-log q(s)", marginal.key}
    assert graph.costs() == ("log p(s)", "-log q(s)", marginal.key)
