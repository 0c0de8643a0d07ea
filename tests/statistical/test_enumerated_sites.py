"""Enumerated sites beside sites that are drawn: exact in expectation, with no more variance than if they were drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

import sgc
from tests.statistical.enumerate import (
    binary,
    categories,
    estimates_of_particles,
    exact_gradient,
    moments,
    weighted_estimates,
)

Program = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, list[Tensor]], dict[str, int]]
"""Model, guide, arguments; all values of all sites; how many values an element of each site has."""


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def line(name: str, *shape: int) -> Tensor:
    size = int(torch.Size(shape).numel())
    return pyro.param(name, torch.linspace(-0.7, 0.9, size).reshape(shape) if size > 1 else torch.full(shape, 0.3))


def chain() -> Program:
    """Each site depends on the one before it, and the data on all."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.3, 0.6, 0.2])[z]))
        v = pyro.sample("v", dist.Bernoulli(0.2 + 0.5 * w))
        with pyro.plate("d", len(x)):
            pyro.sample("x", dist.Normal(z + 2 * w - v, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        z = pyro.sample("z", dist.Categorical(logits=line("a", 3)))
        w = pyro.sample("w", dist.Bernoulli(logits=line("b", 3)[z]))
        pyro.sample("v", dist.Bernoulli(logits=line("c", 2)[w.long()]))

    supports = {"z": categories(3), "w": binary(), "v": binary()}
    return model, guide, (torch.tensor([1.0, 2.0, 0.5]),), supports, {"z": 3, "w": 2, "v": 2}


def apart() -> Program:
    """Two sites that do not depend on each other, and a density of both; one in the model depends on the other."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.3))
        w = pyro.sample("w", dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[z.long()]))
        pyro.sample("x", dist.Normal(z * torch.tensor([1.0, -2.0, 0.5])[w], 1.0), obs=torch.tensor(0.7))
        pyro.sample("y", dist.Normal(w.to(z.dtype), 1.0), obs=torch.tensor(0.2))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=line("a")))
        pyro.sample("w", dist.Categorical(logits=line("b", 3)))

    return model, guide, (), {"z": binary(), "w": categories(3)}, {"z": 2, "w": 3}


def plates() -> Program:
    """A site above a plate, two within it, and densities that are scaled and masked."""
    mask = torch.tensor([True, False])

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("d", 2), poutine.scale(scale=2.5):
            w = pyro.sample("w", dist.Bernoulli(0.2 + 0.5 * z))
            v = pyro.sample("v", dist.Bernoulli(0.3 + 0.4 * w))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(w - 2 * v + z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.5))

    def guide(x: Tensor, scale: float = 2.5) -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=line("a")))
        with pyro.plate("d", 2), poutine.scale(scale=scale):
            w = pyro.sample("w", dist.Bernoulli(logits=line("b", 2) + z))
            pyro.sample("v", dist.Bernoulli(logits=line("c", 2)[w.long()]))

    supports = {"z": binary(), "w": binary(2), "v": binary(2)}
    return model, guide, (torch.tensor([0.1, -0.4]),), supports, {"z": 2, "w": 2, "v": 2}


def nested() -> Program:
    """A plate within another; what is inside depends on what is outside."""

    def model(x: Tensor) -> None:
        outer, inner = pyro.plate("outer", 2, dim=-1), pyro.plate("inner", 2, dim=-2)
        with outer:
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.6, 0.4])))
            with inner:
                w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.2, 0.7])[z]))
                pyro.sample("x", dist.Normal(w + 0.3 * z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        outer, inner = pyro.plate("outer", 2, dim=-1), pyro.plate("inner", 2, dim=-2)
        with outer:
            z = pyro.sample("z", dist.Categorical(logits=line("a", 2, 2)))
            with inner:
                logits = Vindex(line("b", 2, 2))[torch.arange(2), z]
                pyro.sample("w", dist.Bernoulli(logits=logits))

    supports = {"z": categories(2, 2), "w": binary(2, 2)}
    return model, guide, (torch.tensor([[0.5, -0.2], [1.0, 0.1]]),), supports, {"z": 2, "w": 2}


def markov() -> Program:
    """A chain of enumerated sites, with a drawn one below each, that the next step depends on."""

    def model() -> None:
        z, s = torch.tensor(0), torch.tensor(0.0)
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Categorical(torch.tensor([[0.6, 0.4], [0.3, 0.7]])[z]))
            s = pyro.sample(f"s{t}", dist.Bernoulli(torch.tensor([0.2, 0.6])[z]))
            pyro.sample(f"x{t}", dist.Normal(z + 2 * s, 1.0), obs=torch.tensor(0.5 + t))

    def guide() -> None:
        z = torch.tensor(0)
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Categorical(logits=line(f"a{t}", 2, 2)[z]))
            pyro.sample(f"s{t}", dist.Bernoulli(logits=line(f"b{t}", 2)[z]))

    names = [f"{name}{t}" for t in range(3) for name in "zs"]
    supports = {name: categories(2) if name[0] == "z" else binary() for name in names}
    return model, guide, (), supports, dict.fromkeys(names, 2)


def inverted() -> Program:
    """What is above in the model is below in the guide: p(w | v) p(v | z) beside q(v | w) q(z | v)."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        v = pyro.sample("v", dist.Bernoulli(torch.tensor([0.3, 0.6, 0.2])[z]))
        w = pyro.sample("w", dist.Bernoulli(0.2 + 0.5 * v))
        pyro.sample("x", dist.Normal(w - z, 1.0), obs=torch.tensor(0.7))

    def guide() -> None:
        w = pyro.sample("w", dist.Bernoulli(logits=line("a")))
        v = pyro.sample("v", dist.Bernoulli(logits=line("b", 2)[w.long()]))
        pyro.sample("z", dist.Categorical(logits=Vindex(line("c", 2, 3))[v.long()]))

    return model, guide, (), {"w": binary(), "v": binary(), "z": categories(3)}, {"w": 2, "v": 2, "z": 3}


def after_a_chain() -> Program:
    """Two chains of pyro.markov, with a site behind each that reads nothing of them."""

    def both(own: str, site: Callable[[str, Any], Any]) -> None:
        for name in "cd":
            state = torch.tensor(0)
            for t in pyro.markov(range(2)):
                state = site(f"{name}{t}", line(f"{own}{name}", 2)[state]).long()
            site(f"after_{name}", line(f"{own}after_{name}"))

    def model() -> None:
        def site(name: str, logits: Tensor) -> Any:
            value = pyro.sample(name, dist.Bernoulli(logits=logits.detach()))
            pyro.sample(f"x_{name}", dist.Normal(value, 0.8), obs=torch.tensor(0.6))
            return value

        both("prior_", site)

    def guide() -> None:
        both("guide_", lambda name, logits: pyro.sample(name, dist.Bernoulli(logits=0.5 - logits)))

    names = ["c0", "c1", "after_c", "d0", "d1", "after_d"]
    return model, guide, (), {name: binary() for name in names}, dict.fromkeys(names, 2)


def impossible() -> Program:
    """Values of no probability in the guide, whose densities in the model are infinite."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
        w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.3, 0.0, 0.5])[z]))
        pyro.sample("x", dist.Normal(z + w, 1.0), obs=torch.tensor(0.4))

    def guide() -> None:
        probs = torch.nn.functional.pad(torch.softmax(line("a", 2), -1), (0, 1))
        z = pyro.sample("z", dist.Categorical(probs))
        pyro.sample("w", dist.Bernoulli(torch.tensor([1.0, 0.0, 0.0])[z] * torch.sigmoid(line("b"))))

    return model, guide, (), {"z": categories(2), "w": binary()}, {"z": 3, "w": 2}


PROGRAMS = (chain, apart, plates, nested, markov, inverted, after_a_chain)


def subsets(program: Callable[[], Program]) -> list[tuple[str, ...]]:
    names = [*program()[3]]
    if program is markov:
        zs, ss = tuple(f"z{t}" for t in range(3)), tuple(f"s{t}" for t in range(3))
        return [zs, (*zs, "s1"), ss, ("z1", "s2"), (*zs, *ss)]
    if program is after_a_chain:
        return [("c0", "c1", "after_c"), ("after_c", "d0", "d1", "after_d"), tuple(names)]
    return [tuple(name for i, name in enumerate(names) if chosen >> i & 1) for chosen in range(1, 2 ** len(names))]


CASES = [pytest.param(p, names, id=f"{p.__name__}-{'-'.join(names)}") for p in PROGRAMS for names in subsets(p)]


@pytest.mark.parametrize(("program", "enumerated"), CASES)
def test_expectation_is_exact_and_has_less_variance(
    program: Callable[[], Program], enumerated: tuple[str, ...]
) -> None:
    model, guide, args, supports, counts = program()
    module = sgc.compile(model, guide, backend="eager", estimators=dict.fromkeys(enumerated, "enumerate"))
    leaves = list(module.initialize(*args).param_store.parameters())
    drawn = partial(guide, scale=1.0) if program is plates else None  # what is scaled is a density, not a draw
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves, drawn)
    loss, gradients, variance = of_draws(module, args, counts, enumerated, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    plain = sgc.compile(model, guide, backend="eager")
    *_, largest = of_draws(plain, args, counts, (), leaves)
    assert variance <= largest + 1e-10
    if set(enumerated) == set(counts):
        assert abs(variance) < 1e-10
    assert module.verify(*args), module.verify(*args)


def of_draws(
    module: sgc.LossModule,
    args: tuple[Any, ...],
    counts: dict[str, int],
    enumerated: tuple[str, ...],
    leaves: list[Tensor],
) -> tuple[Tensor, list[Tensor], Tensor]:
    return moments(
        weighted_estimates(module, args, {n: c for n, c in counts.items() if n not in enumerated}, leaves), leaves
    )


@pytest.mark.parametrize("program", [chain, plates])
def test_baselines_of_a_site_below_are_exact_too(program: Callable[[], Program]) -> None:
    """A decaying average and a network, with an element for each value of the enumerated site above."""
    model, guide, args, supports, counts = program()
    options = {
        "w": {"use_decaying_avg_baseline": True},
        "v": {"use_decaying_avg_baseline": True, "baseline_beta": 0.7},
    }

    def asking(*args: Any, **kwargs: Any) -> None:
        with poutine.infer_config(config_fn=lambda site: {"baseline": options.get(site["name"], {})}):
            guide(*args, **kwargs)

    module = sgc.compile(model, asking, backend="eager", estimators={"z": "enumerate"})
    leaves = list(module.initialize(*args).param_store.parameters())
    drawn = partial(guide, scale=1.0) if program is plates else None
    _, exact = exact_gradient(model, guide, args, supports, leaves, drawn)
    _, gradients, _ = of_draws(module, args, counts, ("z",), leaves)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    average = module.graph.baseline("w")
    assert average is not None and average.shape[0] == counts["z"]
    assert module.verify(*args), module.verify(*args)


@pytest.mark.parametrize("vectorised", [False, True])
def test_leave_one_out_beside_an_enumerated_site_is_exact(vectorised: bool) -> None:
    """Of two particles, with an enumerated site beside the site that has the baseline."""
    model, guide, args, supports, _ = apart()
    module = sgc.compile(
        model,
        guide,
        backend="eager",
        num_particles=2,
        vectorize_particles=vectorised,
        estimators={"z": "leave-one-out", "w": "enumerate"},
    )
    leaves = list(module.initialize(*args).param_store.parameters())
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves)
    draws = estimates_of_particles(module, partial(_sites, guide, "z"), args, {"z": supports["z"]}, leaves)
    loss, gradients, _ = moments(draws, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert module.verify(*args), module.verify(*args)


def _sites(guide: Callable[..., Any], name: str, *args: Any) -> None:
    """A guide with one of its sites alone."""
    with poutine.block(hide_fn=lambda site: site["type"] == "sample" and site["name"] != name):
        guide(*args)


def test_values_of_no_probability_count_for_nothing() -> None:
    """Their densities are infinite in the model, in the expectation and in the downstream costs."""
    model, guide, args, *_ = impossible()
    module = sgc.compile(model, guide, backend="eager", estimators={"z": "enumerate"})
    leaves = list(module.initialize(*args).param_store.parameters())
    loss = module(*args)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)
    assert module.verify(*args), module.verify(*args)


def test_the_variance_report_takes_the_estimator_apart() -> None:
    """Its total is the exact variance, within the error of its draws; what is enumerated has no row."""
    model, guide, args, _, counts = apart()
    pyro.set_rng_seed(0)
    module = sgc.compile(model, guide, backend="eager", estimators={"w": "enumerate"})
    leaves = list(module.initialize(*args).param_store.parameters())
    *_, variance = of_draws(module, args, counts, ("w",), leaves)
    report = module.gradient_variance(*args, samples=4000)
    assert {row.site for row in report.sites} == {"z", "terms without a score function"}
    assert report.total == pytest.approx(float(variance), rel=0.1)
