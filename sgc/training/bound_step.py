"""A compiled step with its tensors, and what must hold for it to be taken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgc.emit.backends.protocol import StepBackend
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.inductor.compiled_step import BoundStep, BuiltStep
from sgc.emit.inductor.cpp_entry import Taking
from sgc.graph.aliasing import extent
from sgc.guards.base import LEAVES, Call
from sgc.guards.identity import same
from sgc.native import conditions
from sgc.native.conditions import Ask, Condition
from sgc.native.library import is_available, is_there
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.validity import RandomState, Trial
from sgc.training.hindrances import memory_shared
from sgc.training.optimizers.update import Update


@dataclass(slots=True)
class Step:
    """A step that is ready to be taken, any number of times, as long as nothing but tensors' values changes.

    :param backend: the one that it was compiled by.
    :param tensors: the inputs of the program in the call that it was made ready for.
    :param valid: whether the last step that was taken by itself was valid; None if that is not checked.
    """

    specialization: Specialization
    backend: StepBackend
    bound: BoundStep
    tensors: list[Tensor]
    halted: Tensor
    valid: bool | None = None

    def __call__(self, steps: int, stopped: Collection[Any] = ()) -> Tensor:
        """Take ``steps`` steps, or fewer if ``stopped`` ceases to be empty; their losses, of shape ``[taken]``.

        From a loss that is NaN on, ``halted`` is set, and nothing is written any more. So it is from a step on that is
        not valid, whose loss is given as NaN.
        """
        self._count(steps)
        if steps == 1:
            return self.bound(self.tensors, 1)[0]
        parts: list[Tensor] = []
        taken = 0
        while not taken or (taken < steps and not stopped):
            losses, *_ = self.bound(self.tensors, steps - taken)
            parts.append(losses)
            taken += len(losses)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def until_halted(self, steps: int) -> tuple[Tensor, RandomState]:
        """Take up to ``steps`` steps on a CPU, up to one that halts, or up to the one before one that raises.

        :return: their losses, of shape ``[taken]``, and the random state before the last one of them. That is the
            present state where fewer steps were taken, and none has halted.
        :raises Exception: what the first step raises.
        """
        note_state = torch.default_generator.get_state
        try:
            several = self.bound.until_halted(self.tensors, steps, note_state) if steps > 1 else None
        except Exception:
            self._count(1)
            raise
        if several is None:
            before = RandomState(note_state(), self.halted.device, None)
            return torch.tensor([self.once()], dtype=self.bound.dtype, device="cpu"), before
        (losses, *valid), state = several
        before = RandomState(state, self.halted.device, None)
        self._count(len(losses))
        if losses[-1].isnan():
            self.valid = bool(valid[0][-1]) if valid else None
        elif len(losses) < steps:
            before.restore()
        return losses, before

    def once(self) -> float:
        """Take one step; its loss. If that is NaN, the step has halted."""
        return self.loss_of(self.results())

    def results(self) -> Sequence[Any]:
        """Take one step; what it returns, as numbers."""
        self._count(1)
        return self.bound.once(self.tensors)

    def _count(self, steps: int) -> None:
        if self.specialization.tally is not None:
            self.specialization.tally.calls += steps

    def loss_of(self, results: Sequence[Any]) -> float:
        """The loss among these; ``valid`` is noted."""
        if len(results) > 1:
            self.valid = results[1]
        loss: float = results[0]
        return loss

    def random_state(self) -> RandomState | None:
        """The present random state, if the step checks parameters or values: what is not valid is replayed from it."""
        return RandomState.now(self.halted.device) if self.specialization.checks else None

    def trial(self, call: Call, before: RandomState | None) -> Trial | None:
        """The step as one that has been tried from a random state."""
        return None if before is None else Trial.of(call, self.specialization, self.tensors, self.backend, before)

    @property
    def inputs(self) -> list[Tensor]:
        """All inputs of the compiled step, those of the program first."""
        return self.bound.inputs(self.tensors)


def never(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Takes no step: nothing is known of any arguments."""


@dataclass
class Bound:
    """A compiled step with the tensors that it reads and writes, but for those that each call brings.

    :param own: the last of them: the optimizer's state, and ``halted``.
    :param written: the positions of those that the program or the optimizer writes.
    :param take: takes a step at once, if it is known to be for these arguments.
    """

    specialization: Specialization
    backend: StepBackend
    update: Update
    built: BuiltStep
    own: list[Tensor]
    written: frozenset[int]
    take: Taking = never
    _kept: list[Tensor | None] = field(default_factory=list)
    _call: BoundStep | None = None
    _run: Runner | None = None
    _watch: Ask | None = None
    _unwatched: int = 0
    _examined: list[Tensor | None] = field(default_factory=list)
    _disjoint: Condition | None = None

    def is_due(self) -> bool:
        """Whether another process is done with compiling the step, which runs uncompiled as yet."""
        return self.built.awaited is not None and self.built.awaited.is_done()

    def inputs_of(self, call: Call) -> list[Tensor] | None:
        """The inputs of a call that is known to be for this step, with the same tensors and optimizers; else None."""
        return None if self._watch is None else self._watch(call)

    def note_unwatched(self) -> bool:
        """Note that :meth:`inputs_of` did not know; whether to note anew what it asks: at the 2nd time, the 4th ..."""
        self._unwatched += 1
        return self._watch is None or self._unwatched & (self._unwatched - 1) == 0

    def watch(self, own: list[Condition], token: list[object]) -> None:
        """Note that a call is for this step if the guards hold, the tensors are those of now, and these are true.

        :param token: see :class:`sgc.runtime.turns.Token`.
        """
        of_call = self._kept[: len(self.specialization.inputs)]
        assert self._disjoint is not None
        groups = [
            *self.specialization.groups(memory=False),
            ((*own, conditions.same_tensors(of_call), self._disjoint), None),
        ]
        if not (is_available() if self.built.compiled else is_there()):
            self._watch = conditions.watch(groups, native=False)
            return
        watched = conditions.watched(groups)
        self._watch = conditions.asking(watched)
        assert self._call is not None
        note_state = torch.default_generator.get_state if self.specialization.checks else None
        native = self._call.native
        take = (native and native.taking(watched, Call, LEAVES, note_state, token)) or never
        take = take if self.specialization.tally is None else self.specialization.tally.counting(take)
        self.take = take if self.specialization.is_reused else self._noting_reuse(take)

    def _noting_reuse(self, take: Taking) -> Taking:
        """A function that takes a step, and notes that the specialization has served a call once it has."""

        def take_and_note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            taken = take(args, kwargs)
            if taken is not None:
                self.specialization.is_reused = True
                self.take = take if self.take is take_and_note else self.take
            return taken

        return take_and_note

    def shared_memory(self, tensors: list[Tensor]) -> str | None:
        """What :func:`memory_shared` says of a call's tensors; of those that have stayed it is not asked again."""
        kept = self._kept_of(tensors)
        if (
            self._disjoint is not None
            and same(kept, self._examined)
            and conditions.are_disjoint(self._disjoint, tensors)
        ):
            return None
        why = memory_shared(self.specialization, tensors, self.own, self.written)
        if why is None:
            self._examined, self._disjoint = kept, self._no_overlap(tensors, kept)
        return why

    def _no_overlap(self, tensors: list[Tensor], kept: Sequence[Tensor | None]) -> Condition:
        """That what a call brings shares no memory that is written, nor what it brings and is written with anything."""
        program, brought = self.specialization.capture.program, set(self.specialization.brought)
        names = [declared.name for declared in program.inputs]
        sizes = [None if program.is_resized(name) else extent(tensors[i]) for i, name in enumerate(names)]
        written = {i: sizes[i] for i in sorted(brought & self.written)}
        others = {
            i: sizes[i]
            for i, name in enumerate(names)
            if name in program.used and i not in self.written and (written or i in brought)
        }
        stay = [t for i, t in enumerate([*kept, *self.own]) if t is not None and i in self.written]
        stretches = [(t.data_ptr(), t.data_ptr() + extent(t)) for t in stay if extent(t)]
        return conditions.disjoint(written, others, extent, stretches)

    def _kept_of(self, tensors: list[Tensor]) -> list[Tensor | None]:
        """The tensors of a call, without those that each call brings."""
        kept: list[Tensor | None] = list(tensors)
        for position in self.specialization.brought:
            kept[position] = None
        return kept

    def bind(self, tensors: list[Tensor]) -> None:
        """Take the tensors of a call."""
        kept = self._kept_of(tensors)
        if self._call is None or self._run is not self.built.run or not same(kept, self._kept):
            self._run = self.built.run
            self._kept, self._call = kept, self.built.bind([*kept, *self.own])
            self._watch, self.take = None, never

    def step(self, inputs: list[Tensor]) -> Step:
        """A step with the inputs of a call."""
        assert self._call is not None
        return Step(self.specialization, self.backend, self._call, inputs, self.own[-1])
