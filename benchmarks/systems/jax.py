"""NumPyro: ``SVI.update`` under ``jit``, and under ``lax.scan`` as in ``SVI.run``."""

from __future__ import annotations

from typing import Any

import jax
import numpyro
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

from benchmarks.systems.base import LEARNING_RATE, STEPS_A_RUN, System


class JitUpdate(System):
    """One compiled call of ``svi.update`` for each step.

    ``TraceGraph_ELBO`` for the workloads with discrete variables, else ``Trace_ELBO``: the same estimator there, and
    less work for NumPyro.
    """

    def prepare(self) -> None:
        jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU float32, as torch, not TF32
        self.args = tuple(jax.numpy.asarray(array) for array in self.workload.data)
        model, guide = self.workload.numpyro()
        loss = (TraceGraph_ELBO if self.workload.discrete else Trace_ELBO)(num_particles=self.particles)
        self.svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), loss)
        self.state = self.svi.init(jax.random.key(0), *self.args)
        self.compiled = self.compile()

    def compile(self) -> Any:
        """From a state to the next and the losses."""
        return jax.jit(lambda state: self.svi.update(state, *self.args))

    def advance(self) -> Any:
        self.state, loss = self.compiled(self.state)
        return loss

    def wait(self, result: Any) -> None:
        jax.block_until_ready((self.state, result))

    def numbers(self, result: Any) -> Any:
        return result

    def device_peak(self) -> int | None:
        statistics = None if self.device == "cpu" else jax.devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else None


class Scan(JitUpdate):
    """One compiled call for many steps.

    ``svi.run`` would make a new function, and so compile, at each call; this keeps the function.
    """

    steps_a_call = STEPS_A_RUN

    def compile(self) -> Any:
        def body(state: Any, _: None) -> Any:
            return self.svi.update(state, *self.args)

        return jax.jit(lambda state: jax.lax.scan(body, state, None, length=self.steps_a_call))
