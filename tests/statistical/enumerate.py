"""Exact oracles: the expectation of the estimator over every outcome of a program's discrete sites."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

import sgc
from sgc.emit.emitter import emit_surrogate, emit_values
from sgc.graph import keys
from sgc.runtime.specializing.specialization import Specialization

Supports = Mapping[str, list[Tensor]]


def outcomes(supports: Supports) -> Iterator[dict[str, Tensor]]:
    """Every joint outcome of some sites."""
    for values in itertools.product(*supports.values()):
        yield dict(zip(supports, values, strict=True))


def binary(*shape: int) -> list[Tensor]:
    """Every value of a tensor of Bernoulli variables."""
    size = int(torch.Size(shape).numel())
    return [
        torch.tensor(bits, dtype=torch.get_default_dtype()).reshape(shape)
        for bits in itertools.product((0.0, 1.0), repeat=size)
    ]


def categories(count: int, *shape: int) -> list[Tensor]:
    """Every value of a tensor of Categorical variables."""
    size = int(torch.Size(shape).numel())
    return [torch.tensor(values).reshape(shape) for values in itertools.product(range(count), repeat=size)]


def log_joint(fn: Callable[..., Any], args: tuple[Any, ...], values: dict[str, Tensor]) -> Tensor:
    """Pyro's log density of a program with the given values at its sites."""
    trace = poutine.trace(poutine.condition(fn, data=values)).get_trace(*args)
    total = trace.log_prob_sum()
    assert isinstance(total, Tensor)
    return total


def exact_gradient(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    supports: Supports,
    leaves: list[Tensor],
    drawn: Callable[..., Any] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Minus the ELBO as a finite sum, sum_z q(z) (log q(z) - log p(x, z)), and its gradient by autograd.

    :param drawn: the guide without its masks, where it has some: they hide a density, and not a draw.
    """
    loss = torch.zeros(())
    for values in outcomes(supports):
        log_q, log_p = log_joint(guide, args, values), log_joint(model, args, values)
        weight = (log_joint(drawn, args, values) if drawn else log_q).exp()
        loss = loss + weight * (log_q - log_p)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)]


def expected_estimate(
    module: sgc.LossModule,
    drawn: Callable[..., Any],
    args: tuple[Any, ...],
    supports: Supports,
    leaves: list[Tensor],
    average_like: Callable[[Tensor], Tensor] = lambda average: torch.full_like(average, 0.3),
) -> tuple[Tensor, list[Tensor]]:
    """The expectation over all outcomes of the emitted loss and of the surrogate's gradient, the samples forced.

    :param drawn: the guide without its masks, whose density is that of what is drawn.
    :param average_like: what a running average is before each outcome.
    """
    specialization = module.initialize(*args).specializations[-1]
    emitted = emit_surrogate(specialization.graph, forced=tuple(supports)).module
    inputs = _inputs(specialization, args)
    total, sums = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    kept = [average_like(average) for average in specialization.averages()]
    for values in outcomes(supports):
        weight = log_joint(drawn, args, values).exp().detach()
        averages = [average.clone() for average in kept]
        pyro.set_rng_seed(0)
        loss, surrogate, *_ = emitted(*inputs, *averages, *values.values())
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if surrogate.requires_grad:
            gradients = torch.autograd.grad(surrogate, leaves, allow_unused=True)
        total = total + weight * loss.detach()
        sums = [s if g is None else s + weight * g for s, g in zip(sums, gradients, strict=True)]
    return total, sums


def weighted_estimates(
    module: sgc.LossModule, args: tuple[Any, ...], supports: Mapping[str, int], leaves: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """For every joint outcome of what is drawn: its probability, the emitted loss, and the surrogate's gradient.

    :param supports: how many values each drawn site has: 0, 1 and so on. Below an enumerated site there is a draw for
        each of its values.
    """
    specialization = module.initialize(*args).specializations[-1]
    graph = specialization.graph
    program = graph.program
    assert program is not None
    nodes = [program.node(program.site(name).value or "").meta["val"] for name in supports]
    shaped = {
        name: [value.to(node.dtype) for value in categories(count, *node.shape)]
        for (name, count), node in zip(supports.items(), nodes, strict=True)
    }
    emitted = emit_surrogate(graph, forced=tuple(supports)).module
    densities = emit_values(graph, tuple(map(keys.score_function, supports)), forced=tuple(supports)).module
    inputs = _inputs(specialization, args)
    for values in outcomes(shaped):
        scores = densities(*inputs, *values.values())[: len(supports)] if supports else ()
        probability = sum((score.detach().sum() for score in scores), torch.zeros(())).exp()
        averages = [torch.full_like(average, 0.3) for average in specialization.averages()]
        loss, surrogate, *_ = emitted(*inputs, *averages, *values.values())
        gradients = torch.autograd.grad(surrogate, leaves, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)]
        yield probability, loss.detach(), filled


def moments(
    estimates: Iterator[tuple[Tensor, Tensor, list[Tensor]]], leaves: list[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The expectations of loss and gradient, and the variance of the gradient, summed over all its elements."""
    loss, first, second = torch.zeros(()), [torch.zeros_like(t) for t in leaves], torch.zeros(())
    total = torch.zeros(())
    for probability, value, gradients in estimates:
        total, loss = total + probability, loss + probability * value
        first = [known + probability * g for known, g in zip(first, gradients, strict=True)]
        second = second + probability * sum((g**2).sum() for g in gradients)
    assert torch.allclose(total, torch.ones(()))
    return loss, first, second - sum((g**2).sum() for g in first)


def _inputs(specialization: Specialization, args: tuple[Any, ...]) -> list[Any]:
    arguments = iter(tensor for tensor in torch.utils._pytree.tree_leaves(args) if isinstance(tensor, Tensor))
    return [owner.fetch() if owner.fetch() is not None else next(arguments) for owner in specialization.owners.values()]


def estimates_of_particles(
    module: sgc.LossModule, guide: Callable[..., Any], args: tuple[Any, ...], supports: Supports, leaves: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """For every joint outcome of all particles: its probability, the emitted loss, and the surrogate's gradient."""
    specialization = module.initialize(*args).specializations[-1]
    graph, particles = specialization.graph, specialization.graph.particles
    emitted = emit_surrogate(graph, forced=tuple(supports)).module
    inputs = _inputs(specialization, args)
    single = [(values, log_joint(guide, args, values).exp().detach()) for values in outcomes(supports)]
    for together in itertools.product(single, repeat=particles.count):
        values = [drawn for drawn, _ in together]
        if particles.plate is not None:
            forced = [torch.stack([v[name] for v in values]).reshape(graph.payload(name).shape) for name in supports]
        else:
            forced = [drawn[name] for drawn in values for name in supports]
        averages = [torch.full_like(average, 0.3) for average in specialization.averages()]
        loss, surrogate, *_ = emitted(*inputs, *averages, *forced)
        gradients = torch.autograd.grad(surrogate, leaves, allow_unused=True)
        probability = torch.stack([weight for _, weight in together]).prod()
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)]
        yield probability, loss.detach(), filled
