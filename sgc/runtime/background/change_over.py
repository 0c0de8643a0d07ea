"""How a loss that runs operator by operator changes over to what another process has compiled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from sgc.emit.backends.protocol import Backend, BackgroundBackend
from sgc.emit.inductor.background.compiler_process import PendingCompilation
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.optimize import Optimized
from sgc.runtime.autograd import Compiled
from sgc.runtime.background.compiled_elsewhere import taken, told, usable
from sgc.runtime.background.postponed import Postponed
from sgc.runtime.compiling import compiling
from sgc.runtime.particles import Repeated
from sgc.runtime.specializing.specialization import Specialization


@dataclass
class ChangeOver:
    """What another process was asked to compile, and what is made of its answer.

    :param what: what that is, for the log.
    :param validates: whether it says of each call if that was valid.
    """

    specialization: Specialization
    what: str
    backend: BackgroundBackend
    optimized: Optimized
    validates: bool
    asked: PendingCompilation | Postponed

    def is_due(self) -> bool:
        """Whether the other process is done with it, in either way."""
        return self.asked.is_done()

    def made(self, before: Compiled, tensors: list[Tensor]) -> Compiled:
        """What takes the place of what has run until now.

        :param tensors: inputs of a call.
        """
        with compiling(self.specialization):
            run = self.build([tensor.detach() for tensor in tensors])
        run = repeated(self.specialization, run, self.validates)
        return replace(before, run=run, separate=None, change=None)

    def build(self, examples: list[Tensor]) -> Runner:
        """The compiled program; where the other process has failed, it is compiled here."""
        specialization, answer = self.specialization, taken(self.asked)
        if answer is not None:
            with usable(answer):
                run = self.backend.of_answer(answer).build(self.optimized, examples, specialization.options.rng)
                specialization.watch_natively()
                return run
        return built_here(specialization, self.what, self.backend, self.optimized, examples)


def built_here(
    specialization: Specialization, what: str, backend: Backend, optimized: Optimized, examples: list[Tensor]
) -> Runner:
    """What a backend builds while one waits for it."""
    if not backend.needs_compiler:
        return backend.build(optimized, examples, specialization.options.rng)
    with told(specialization, what):
        run = backend.build(optimized, examples, specialization.options.rng)
        specialization.watch_natively()
    return run


def repeated(specialization: Specialization, run: Runner, validates: bool) -> Runner:
    """A run for each particle, where there are many."""
    if specialization.repeats == 1:
        return run
    return Repeated(run, specialization.repeats, specialization.written if validates else None)
