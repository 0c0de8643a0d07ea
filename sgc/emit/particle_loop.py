"""Emits a training step of many particles as two modules: one particle, which is run many times, and what follows.

Unrolled, a program grows with its particles, and so do its compilation and its memory. Here each particle adds its loss
and gradients to the totals, and the update takes their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import Differentiated, trace
from sgc.emit.fx.rewriting import results_of, value_of
from sgc.emit.rollback import Writes, written_inputs
from sgc.emit.train_step import Update, new_flag, updated


@dataclass(frozen=True)
class ParticleLoop:
    """A step in two modules with the same inputs: ``(*tensors, *state, halted, *scratch)``.

    :param particle: to be run ``times`` times; writes into the scratch, and what the program itself writes.
    :param finish: gives and writes what a step does (:func:`sgc.emit.train_step.emit_step`).
    :param scratch: ``first``, which the caller sets for the first particle alone; ``aborted``, with which ``finish``
        only puts back what particles have written, since a later one has raised; totals; and copies of what particles
        write into. Needed within a step only.
    """

    particle: fx.GraphModule
    finish: fx.GraphModule
    scratch: list[Tensor]
    times: int


def emit_particle_loop(
    differentiated: Differentiated, tensors: Sequence[Tensor], state: Sequence[Tensor], update: Update, times: int
) -> ParticleLoop:
    """The step of ``times`` particles, one after another; see :func:`sgc.emit.train_step.emit_step`.

    :param differentiated: of one particle.
    """
    device = differentiated.device
    hidden = sorted(written_inputs(differentiated.module))
    values = [value_of(node) for node in results_of(differentiated.module)]
    totals = [torch.zeros(value.shape, dtype=value.dtype, device=value.device) for value in values]
    copies = [tensors[i].detach().clone() for i in hidden]
    scratch = [new_flag(device), new_flag(device), *totals, *copies]
    count, own = len(tensors), len(tensors) + len(state)

    def parts(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        first, aborted, *others = inputs[own + 1 :]
        return first, aborted, others[: len(totals)], others[len(totals) :]

    def particle(*inputs: Tensor) -> list[Tensor]:
        first, _, sums, before = parts(inputs)
        for i, kept in zip(hidden, before, strict=True):
            kept.copy_(torch.where(first, inputs[i], kept))
        results = differentiated.module(*inputs[:count])
        with torch.no_grad():
            for total, result in zip(sums, results, strict=True):
                so_far = total & result if result.dtype is torch.bool else total + result
                total.copy_(torch.where(first, result, so_far))
        return [results[0]]

    def finish(*inputs: Tensor) -> list[Tensor]:
        _, aborted, sums, before = parts(inputs)
        halted, done = inputs[own], Writes(inputs[:own])
        valid = [sums.pop()] if differentiated.validates else []
        with torch.no_grad():
            means = [total / times for total in sums]
        results, state = [*means, *valid], list(inputs[count:own])
        given, halt = updated(differentiated, results, inputs, state, halted, update)
        with torch.no_grad():
            undone = halt | aborted
            done.undo_where(undone)
            for i, kept in zip(hidden, before, strict=True):
                inputs[i].copy_(torch.where(undone, kept, inputs[i]))
            halted.copy_(torch.where(aborted, halted, halt))
        return given

    examples = [*tensors, *state, new_flag(device), *scratch]
    return ParticleLoop(trace(particle, examples), trace(finish, examples), scratch, times)
