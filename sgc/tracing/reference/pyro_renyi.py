"""Eager Pyro's ``RenyiELBO``, and the importance weighted bound, whose scores Pyro weighs otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import RenyiELBO
from pyro.infer.util import get_dependent_plate_dims, torch_sum
from pyro.poutine import Trace
from torch import Tensor

from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.sample_sites import samples

Run = tuple[Tensor, Tensor]


class PyroRenyi(PyroLoss, RenyiELBO):
    """Pyro's ``RenyiELBO``, run by run: what its ``loss_and_grads`` does in one piece."""

    _refuses_rejection = True

    def value_and_surrogate(self, traces: tuple[Trace, Trace]) -> tuple[Any, Any]:
        """The log weight of one run, or of each of its particles, and what its normalised weight is multiplied by.

        :raises NotImplementedError: at a rejection sampler.
        """
        model_trace, guide_trace = traces
        dims = get_dependent_plate_dims(model_trace.nodes.values())
        log_weight: Any = torch.zeros(())
        surrogate: Any = torch.zeros(())
        for site in samples(model_trace):
            log_p = torch_sum(site["log_prob"], dims)
            log_weight, surrogate = log_weight + log_p.detach(), surrogate + log_p
        for site in samples(guide_trace):
            _, score_function, entropy_term = site["score_parts"]
            log_q = torch_sum(site["log_prob"], dims)
            log_weight = log_weight - log_q.detach()
            scored, pathwise = not is_identically_zero(score_function), not is_identically_zero(entropy_term)
            if scored and pathwise and self._refuses_rejection:
                raise NotImplementedError(f"RenyiELBO has no estimator for the rejection sampler at '{site['name']}'")
            if pathwise:
                surrogate = surrogate - log_q
            if scored:
                surrogate = surrogate + self.alpha / (1 - self.alpha) * log_q
        return log_weight, surrogate

    def combined(self, runs: Iterator[tuple[Trace, Trace]]) -> tuple[Any, Any]:
        weights, surrogates = self._of_all_particles(runs)
        scaled = (1 - self.alpha) * weights
        mean = torch.logsumexp(scaled, 0, keepdim=True) - math.log(self.num_particles)
        surrogate = ((scaled - mean).exp() * surrogates).sum() / self.num_particles
        return mean.sum() / (1 - self.alpha), -surrogate

    def _of_all_particles(self, runs: Iterator[tuple[Trace, Trace]]) -> Run:
        """The values of all particles, in a first dim."""
        values, surrogates = zip(*map(self.value_and_surrogate, runs), strict=True)
        if self.vectorize_particles and self.num_particles > 1:
            return values[0], surrogates[0]
        return torch.stack(values), torch.stack(surrogates)


class PyroImportanceWeighted(PyroRenyi):
    """Pyro's ``RenyiELBO`` of order 0, with the score functions of Mnih and Rezende 2016 (VIMCO) if ``as_asked``.

    Without these a rejection sampler has the gradient through its proposal alone.
    """

    _refuses_rejection = False

    def value_and_surrogate(self, traces: tuple[Trace, Trace]) -> tuple[Any, Any]:
        """The log weight of one run, or of each of its particles, and the sum of its score functions."""
        if not self.as_asked:
            return super().value_and_surrogate(traces)
        sites = [site for trace in traces for site in samples(trace)]
        dims = get_dependent_plate_dims(sites)
        log_weight: Any = torch.zeros(())
        scores: Any = torch.zeros(())
        for site in samples(traces[0]):
            log_weight = log_weight + torch_sum(site["log_prob"], dims)
        for site in samples(traces[1]):
            score_function = site["score_parts"].score_function
            log_weight = log_weight - torch_sum(site["log_prob"], dims)
            if not is_identically_zero(score_function):
                scores = scores + torch_sum(score_function, dims)
        return log_weight, scores

    def combined(self, runs: Iterator[tuple[Trace, Trace]]) -> tuple[Any, Any]:
        if not self.as_asked:
            return super().combined(runs)
        weights, scores = self._of_all_particles(runs)
        bound = _log_mean(weights)
        surrogate = bound.sum()
        for k in range(self.num_particles):
            others = torch.cat([weights[:k], weights[k + 1 :]]).detach()
            gain = bound.detach() - _log_mean(torch.cat([others, others.mean(0, True)]))
            surrogate = surrogate + (gain * scores.expand_as(weights)[k]).sum()
        return bound.sum(), -surrogate


def _log_mean(weights: Tensor) -> Tensor:
    return torch.logsumexp(weights, 0) - math.log(len(weights))
