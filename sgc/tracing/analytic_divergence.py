"""The closed form of the two densities of a site, as Pyro's ``TraceMeanField_ELBO`` takes it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import ExponentialFamily, kl_divergence
from torch.distributions.kl import _dispatch_kl, _kl_expfamily_expfamily

from sgc.tracing.site_options.asked_estimators import base_distribution


def analytic_divergence(guide_site: Any, model_site: Any) -> Tensor | None:
    """``KL(q || p)`` of a site in the traces of guide and model, in the batch shape of ``q``, scaled and masked as
    ``q`` is; None where torch and Pyro have no closed form.
    """
    try:
        divergence = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return None
    weighted: Tensor = scale_and_mask(torch.as_tensor(divergence), guide_site["scale"], guide_site["mask"])
    return weighted


def differentiated_family(guide_fn: Any, model_fn: Any) -> str | None:
    """The family of two distributions for whose divergence torch differentiates their log normaliser, or None."""
    q, p = base_distribution(guide_fn), base_distribution(model_fn)
    if not isinstance(q, ExponentialFamily) or type(q) is not type(p):
        return None
    # There is no public way to tell which rule kl_divergence takes.
    rule = _dispatch_kl(type(q), type(p))
    return type(q).__name__ if rule is _kl_expfamily_expfamily else None


def weighted_alike(guide_site: Any, model_site: Any) -> bool | None:
    """Whether the model scales and masks its density as the guide does; None where that is for values to say."""
    alike = [_alike(guide_site["scale"], model_site["scale"]), _masked_alike(guide_site["mask"], model_site["mask"])]
    return False if False in alike else None if None in alike else True


def _alike(one: Any, other: Any) -> bool | None:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return True if one is other else None
    return bool(one == other)


def _masked_alike(one: Any, other: Any) -> bool | None:
    """The same of masks, of which None means all; a tensor is taken to hide something."""
    one, other = (None if mask is True else mask for mask in (one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _alike(one, other)
    return one is other
