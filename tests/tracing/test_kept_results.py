"""A run that computes with what the run before has left is refused; what is older, or has no history, is not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import CaptureError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))


def raw() -> Tensor:
    found = pyro.param("raw", torch.tensor(0.1))
    assert isinstance(found, Tensor)
    return found


class Attribute:
    kept: Any = None

    def guide(self) -> None:
        scale = self.kept if self.kept is not None else raw().exp()
        pyro.sample("z", dist.Normal(0.0, scale))
        self.kept = raw().exp()


class Memo(nn.Module):
    """As gpytorch: a memo that is cleared in the midst of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.1))
        self._memo: dict[str, Any] = {}

    def scale(self) -> Any:
        if "scale" not in self._memo:
            self._memo["scale"] = self.raw.exp()
        return self._memo["scale"]

    def guide(self) -> None:
        pyro.module("memo", self)
        pyro.sample("z", dist.Normal(0.0, self.scale()))
        self._memo.clear()
        self.scale()


class Distribution(Memo):
    """A distribution in the memo."""

    def guide(self) -> None:
        pyro.module("memo", self)
        pyro.sample("z", self._memo.get("q") or dist.Normal(0.0, self.raw.exp()))
        self._memo["q"] = dist.Normal(0.0, self.raw.exp())


class OnceOnly(Memo):
    """Computed in the first run for all."""

    def guide(self) -> None:
        pyro.module("memo", self)
        pyro.sample("z", dist.Normal(0.0, self.scale()))


class Cleared(Memo):
    """The remedy."""

    def guide(self) -> None:
        self._memo.clear()
        super().guide()


def closed_over() -> Callable[[], None]:
    kept: list[Tensor] = []

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, kept.pop() if kept else raw().exp()))
        kept.append(raw().exp())

    return guide


@pytest.mark.parametrize("kind", [Attribute, Memo, Distribution, OnceOnly])
def test_refused(kind: Callable[[], Any]) -> None:
    with pytest.raises(CaptureError, match=r"what an earlier run of it has left in .*ExpBackward0"):
        sgc.compile(model, kind().guide, backend="eager")()


def test_refused_in_a_closure() -> None:
    with pytest.raises(CaptureError, match="what an earlier run of it has left"):
        sgc.compile(model, closed_over(), backend="eager")()


def agrees(guide: Callable[[], None]) -> None:
    values = []
    for infer in (pyro.infer, sgc.infer):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = infer.TraceGraph_ELBO(retain_graph=True, **({"backend": "eager"} if infer is sgc.infer else {}))
        losses = [elbo.loss_and_grads(model, guide) for _ in range(3)]
        values.append((losses, raw().grad))
    torch.testing.assert_close(values[1], values[0])


def test_the_remedy() -> None:
    losses = []
    for infer in (pyro.infer, sgc.infer):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = infer.TraceGraph_ELBO(**({"backend": "eager"} if infer is sgc.infer else {}))
        svi = infer.SVI(model, Cleared().guide, pyro.optim.SGD({"lr": 0.01}), elbo)
        losses.append([svi.step() for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0])


def test_what_is_older_is_not_refused() -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    hidden = weight.exp()  # made before any run, as an encoder's output

    def guide() -> None:
        pyro.sample("z", dist.Normal(raw(), hidden))

    agrees(guide)


def test_constants_that_a_run_has_made_are_not_refused() -> None:
    @functools.lru_cache
    def grid(n: int) -> Tensor:
        return torch.linspace(0.1, 1.0, n)

    def guide() -> None:
        pyro.sample("z", dist.Normal(raw(), grid(5).sum()))

    agrees(guide)
