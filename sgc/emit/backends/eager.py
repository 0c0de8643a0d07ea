"""The eager backend: the module runs node for node as it was traced, and adds up as Pyro does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends.protocol import Backend
from sgc.emit.fx.lazy_modules import write_python
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.optimize import Optimized, Report


class Eager(Backend):
    """Nothing is rewritten, before the gradient or after it."""

    name = "eager"
    sees_views = True

    def before_gradient(self, module: fx.GraphModule) -> fx.GraphModule:
        return module

    def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
        return Optimized(module, Report())

    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        write_python(optimized.module)
        return optimized.module

    def draws_as_torch(self, rng: Rng) -> bool:
        return True
