"""One compiled version of a program, valid as long as its guards hold: a record of its stages and its guards.

It is made, and compiled further when that is first needed, by :mod:`sgc.runtime.specializing.compiler`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sgc.config import Options
from sgc.emit.backends.protocol import Backend
from sgc.emit.differentiate import Differentiated
from sgc.emit.emitter import Emitted
from sgc.emit.rewrites.optimize import Report
from sgc.graph.aliasing import copies
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode
from sgc.graph.program import Check, Input, InputKind
from sgc.graph.sizes import is_sized_by_call
from sgc.guards.base import Call, Guard
from sgc.guards.memory_guard import MemoryGuard
from sgc.guards.miss import Miss
from sgc.guards.registration_guard import RegistrationGuard
from sgc.guards.tensor_guard import TensorGuard
from sgc.native import conditions
from sgc.native.conditions import Ask, Condition, Group
from sgc.runtime.autograd import Compiled
from sgc.runtime.averages import Averages
from sgc.runtime.speculation.tally import Tally
from sgc.tracing.declare import Capture
from sgc.tracing.prototype import Prototype
from sgc.tracing.state.owners import ArgumentOwner, Owner
from sgc.tracing.state.places import Place, PlaceOwner
from sgc.tracing.symbolic_sizes import Sized


class SizesNeededError(Exception):
    """What a version left open, the sizes of some tensors, cannot be open in a later stage of its compilation."""

    def __init__(self, specialization: Specialization, reason: str) -> None:
        super().__init__(reason)
        self.specialization = specialization
        self.reason = reason


FIRST_CALL = "the first call"
OTHER_BRANCHES = "other branches on samples are taken more often"
"""Reasons for a specialization, where none before it has missed a guard."""


@dataclass
class Specialization:
    """The stages of one version, its guards, and what was compiled of it so far.

    :param backend: the one that it is captured for; it starts on it.
    :param tensors: the one of its guards that finds its inputs.
    """

    prototype: Prototype
    capture: Capture
    graph: StochasticGraph
    emitted: Emitted
    options: Options
    backend: Backend
    tensors: TensorGuard
    guards: tuple[Guard, ...]
    by_value: Mapping[Place, str] = field(default_factory=dict)
    """Places of numbers that cannot be inputs, with the reasons."""
    needed_sizes: Mapping[tuple[Sized, int], str] = field(default_factory=dict)
    """Tensors and dims whose sizes cannot be left open, with the reasons."""
    reason: str = FIRST_CALL
    """Why it was made: what differed from the one before."""
    differentiated: Differentiated | None = None
    compiled: dict[tuple[bool, Backend], Compiled] = field(default_factory=dict)
    """What was compiled, for loss and gradients (true) or for the loss alone, by backend."""
    steps: list[tuple[Backend, Report]] = field(default_factory=list)
    """How the whole steps that were built were rewritten, each with its backend."""
    backends: dict[bool, Backend] = field(default_factory=dict)
    """The backend that it has moved to, for loss and gradients (true) or for the loss alone."""
    inputs_of: Ask = field(init=False)
    """The inputs of a call if every guard holds for it, or None."""
    captured_for: weakref.ref[Call] | None = None
    is_reused: bool = False
    """Whether it has served another call than the one that it was captured for."""
    tally: Tally | None = field(init=False)
    """Counts calls, if branches on samples are assumed to go one way."""

    def __post_init__(self) -> None:
        self.inputs_of = conditions.watch(self.groups(), native=False)
        self.tally = Tally() if any(check.assumed for check in self.checks) else None

    # -- what it is of

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of the program."""
        return self.capture.program.inputs

    @property
    def owners(self) -> dict[str, Owner]:
        """For each of these who owns the tensor."""
        return self.capture.owners

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """The checks of parameters and values that are made at each call."""
        return self.capture.program.checks

    @cached_property
    def baselines(self) -> Averages:
        """The decaying-average baselines, in the order of the emitted module's inputs."""
        nodes = [self.graph.payload(key) for key in self.emitted.averages]
        return Averages([node for node in nodes if isinstance(node, BaselineNode)], self.prototype.store)

    def averages(self) -> list[Tensor]:
        """The running averages of these baselines, created as zeros where Pyro's store has none."""
        return self.baselines.tensors()

    def examples(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors to trace for the inputs of a call: those themselves, but where sizes differ from call to call."""
        if self.capture.sizes is None:
            return tensors
        traced = [self.capture.program.node(declared.node).meta["val"] for declared in self.inputs]
        own = [t if is_sized_by_call(t) else tensor for t, tensor in zip(traced, tensors, strict=False)]
        return own + tensors[len(own) :]

    def with_averages(self, inputs: list[Tensor]) -> list[Tensor]:
        """The tensors that the emitted module takes, for these inputs of the program."""
        return inputs + self.averages() if self.emitted.averages else inputs

    @cached_property
    def repeats(self) -> int:
        """How often the emitted module runs in one call: once, unless there are many particles."""
        return self.graph.particles.calls

    @cached_property
    def brought(self) -> tuple[int, ...]:
        """Which of its inputs each call brings."""
        owners = [self.owners[declared.name] for declared in self.inputs]
        return tuple(
            position for position, owner in enumerate(owners) if isinstance(owner, (ArgumentOwner, PlaceOwner))
        )

    @cached_property
    def reads_inputs_only(self) -> bool:
        """Whether the values that the program reads in Python are of arguments and constants that no step changes."""
        program = self.capture.program
        fixed = {declared.name for declared in self.inputs if declared.kind in (InputKind.DATA, InputKind.CONSTANT)}
        return all((fixed - program.written).issuperset(guard.inputs) for guard in program.value_guards)

    def written(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors of a call that a step may write into: buffers, running averages, what the program writes into."""
        names = self.capture.program.written
        may_be = [declared.kind is InputKind.BUFFER or declared.name in names for declared in self.inputs]
        return [t for t, written in zip(tensors, may_be, strict=False) if written] + tensors[len(may_be) :]

    def values(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Every named fx node in an eager run of the program, of its first particle; nothing is written."""
        module = self.capture.program.module
        output = next(node for node in module.graph.nodes if node.op == "output")
        with torch.no_grad():
            results = module(*copies(tensors[: len(self.inputs)]))
        return {node.name: value for node, value in zip(output.args[0], results, strict=True)}

    @cached_property
    def shares_memory(self) -> bool:
        """Whether it writes into memory that other inputs lie in, which not every backend sees."""
        return any(isinstance(guard, MemoryGuard) and guard.finds_shared for guard in self.guards)

    def is_untied(self) -> bool:
        """Whether the param store holds another tensor under a name than it did, or than the program's modules do.

        Where the program runs in Python it may put the one into the place of the other.
        """
        return any(guard.is_untied() for guard in self.guards if isinstance(guard, RegistrationGuard))

    def note_call(self, call: Call) -> None:
        """Note that it serves a call."""
        self.is_reused = self.is_reused or self.captured_for is None or self.captured_for() is not call

    # -- its guards

    def groups(self, *, memory: bool = True) -> list[Group]:
        """The guards, each as its conditions and whom to ask where these are not true.

        :param memory: also the one of shared memory.
        """
        guards = [guard for guard in self.guards if memory or not isinstance(guard, MemoryGuard)]
        return [(tuple(guard.conditions()), guard.check) for guard in guards]

    def watch_natively(self) -> None:
        """Ask the guards in C++ from now on."""
        self.inputs_of = conditions.watch(self.groups(), native=True)

    def miss(self, call: Call) -> Miss | None:
        """None if every guard holds for this call, else what the first broken one says."""
        for guard in self.guards:
            reason = guard.miss(call)
            if reason is not None:
                return reason
        return None

    def describe(self) -> Iterator[str]:
        """Every guard in words."""
        for guard in self.guards:
            yield from guard.describe()
        yield from (f"assumed: {check}" for check in self.checks if check.assumed)

    # -- the backends that it runs on

    def backend_of(self, *, with_gradient: bool) -> Backend:
        """The present backend, for loss and gradients or for the loss alone."""
        return self.backends.get(with_gradient, self.backend)

    def use_backend(self, backend: Backend, *, with_gradient: bool) -> None:
        """Run on another backend from the next call on."""
        self.backends[with_gradient] = backend
        for key in [key for key in self.compiled if key[0] == with_gradient]:
            del self.compiled[key]

    def keeps_backend(self) -> list[Condition]:
        """Guards that its gradients, and so its steps, still run on the present backend."""
        read = conditions.entry(self.backends, True)
        return [conditions.is_same(read, self.backends[True]) if True in self.backends else conditions.absent(read)]

    def calls(self, *, with_gradient: bool) -> int:
        """How often it was called on its present backend, for training or for the loss alone."""
        compiled = self.compiled.get((with_gradient, self.backend_of(with_gradient=with_gradient)))
        return compiled.calls if compiled is not None else 0
