"""Calls that check parameters and values: where one was not valid, Pyro runs it again and says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgc.emit.backends.protocol import Backend
from sgc.errors import CaptureError, InvalidValueError
from sgc.guards.base import Call
from sgc.runtime.number_checks import failed_number
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import run_validated
from sgc.tracing.state.random_state import device_random_state, set_device_random_state


@dataclass(slots=True)
class RandomState:
    """Torch's random state, which is all that a compiled program draws from; cheap enough to note at each call."""

    cpu: Tensor
    device: torch.device
    other: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """The present state."""
        return cls(
            torch.default_generator.get_state(),
            device,
            device_random_state(device) if device.type != "cpu" else None,
        )

    def restore(self) -> None:
        """Make it the present state again."""
        torch.default_generator.set_state(self.cpu)
        if self.other is not None:
            set_device_random_state(self.other, self.device)


@dataclass(slots=True)
class Trial:
    """A call of a compiled program that checks parameters and values.

    :param inputs: those of the program.
    :param before: the random state before it.
    :param same_numbers: whether it draws the random numbers that Pyro draws.
    :param valid: whether the checks hold; known after the call, unless that has failed.
    :param params: the names of Pyro's parameters that the program has asked for.
    :param averages: the names of the averages that Pyro has written and the compiled program does not have.
    """

    call: Call
    specialization: Specialization
    inputs: list[Tensor]
    before: RandomState
    same_numbers: bool
    valid: Tensor | bool | None = None
    params: tuple[str, ...] = ()
    averages: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        call: Call,
        specialization: Specialization,
        inputs: list[Tensor],
        backend: Backend,
        before: RandomState | None = None,
    ) -> Trial | None:
        """A call that is made now, or that was made from a random state before; None if nothing is checked."""
        if not specialization.checks:
            return None
        if before is None:
            before = RandomState.now(inputs[0].device if inputs else torch.device("cpu"))
        return cls(call, specialization, inputs, before, backend.draws_as_torch(specialization.options.rng))


def judge(trial: Trial, program: ProgramCall) -> None:
    """Run Pyro on a call that was not valid, from the random state before it.

    It returns where Pyro, with the same numbers, finds nothing wrong: the two differ by rounding then.

    :raises ValueError: Pyro's own.
    :raises InvalidValueError: where Pyro finds its numbers valid, but they are not those of the call.
    :raises CaptureError: where Python computes a number that the compiled program cannot.
    """
    run_validated(program, trial.specialization.prototype.max_plate_nesting)
    number = failed_number(trial.specialization, trial.inputs)
    if number is not None:
        raise CaptureError(
            f"in this call the program computes in Python {number.what}, which a compiled program cannot follow",
            source=number.source,
            remedy="compute it outside of model and guide and pass what comes of it; or make a tensor of the number "
            "first: torch.as_tensor(number)",
        )
    drawn = [str(check) for check in trial.specialization.checks if check.random]
    if drawn and not trial.same_numbers and trial.valid is not None:
        raise InvalidValueError(
            "a random number has led to a parameter or value that is not valid, while those that Pyro draws are. "
            f"What depends on random numbers: {'; '.join(drawn)}",
            remedy='with rng="torch" the numbers are those of Pyro, whose error says more',
        )


def error_of_call_before() -> InvalidValueError:
    """The error for an invalid call that was noticed when its parameters had changed: Pyro cannot run it again."""
    return InvalidValueError(
        "a parameter or value of the call before this one was not valid; with the present parameters Pyro accepts it",
        remedy="what was trained since may be wrong; look at the parameters, or pass validate=False if they are fine",
    )
