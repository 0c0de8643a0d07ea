"""A loss that comes from a file: an ``nn.Module`` with the parameters and the gradients of the one that was saved."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sgc.errors import ArgumentError, InvalidValueError
from sgc.runtime.autograd import Loss
from sgc.saved.contents import Contents
from sgc.saved.graph_nodes_as_data import SavedGraph
from sgc.saved.saved_program import SavedProgram, without_autocast


@dataclass
class _Checked:
    """A call that is checked (:class:`sgc.runtime.autograd.Judged`)."""

    valid: Any = None


@dataclass(frozen=True)
class Written:
    """What a file says of where it was written: the format, and the versions of sgc and torch."""

    format: int
    sgc: str
    torch: str


class LoadedLoss(nn.Module):
    """A loss that was saved by :func:`sgc.save`; made by :func:`sgc.load`. It needs neither Pyro nor the model's code.

    ``loss(*args, **kwargs)`` takes the arguments of the loss module that was saved and returns minus the ELBO (0-d, in
    nats), whose gradient is the surrogate's. Under one seed of torch's, loss and gradients are those of
    ``sgc.compile(..., backend="eager")``, to the last bit with the same release of torch.

    ``named_parameters()``, ``named_buffers()`` and ``state_dict()`` have the names that they had, Pyro's parameters as
    Pyro's store holds them: unconstrained. What the program found outside of its arguments and cannot train (data that
    it closes over, numbers that moved) stands among the buffers as ``constants``, and not in ``state_dict()``.

    ``optimizer_state`` is what ``optimizer.state_dict()`` was where the loss was saved with its optimizer, else None;
    ``written`` says by which versions the file was written.

    :param contents: those of the file; it is used up.
    :param programs: at least one. The first that fits a call makes it.
    """

    def __init__(self, contents: Contents, programs: Sequence[SavedProgram], written: Written) -> None:
        super().__init__()
        self._contents = contents
        self._programs = tuple(programs)
        self._holders: dict[str, tuple[dict[str, Any], str]] = {}
        self._latest = self._programs[-1]
        self.optimizer_state = contents.optimizer
        self.written = written
        for name, (number, kind) in contents.names.items():
            self._show(name, contents.tensors[number], kind)
        missing = {name for program in self._programs for name in program.shown} - self._holders.keys()
        if missing:
            raise ValueError(f"nothing is shown under {sorted(missing)}")

    def _show(self, name: str, tensor: Tensor, kind: str) -> None:
        """Put a tensor where its dotted name says; a tensor may have a name that begins another one's."""
        holder, last = holder_of(self, name)
        of_kind: dict[str, Any] = holder._parameters if kind == "parameter" else holder._buffers
        of_kind[last] = tensor
        if kind == "constant":
            holder._non_persistent_buffers_set.add(last)
        self._holders[name] = of_kind, last

    def _shown(self, name: str) -> Tensor:
        holder, last = self._holders[name]
        tensor: Tensor = holder[last]
        return tensor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the ELBO, a 0-d tensor in nats; its ``backward()`` gives the surrogate's gradient.

        :raises sgc.errors.ArgumentError: if the file has no program for such arguments; the text names what differs.
        :raises sgc.errors.InvalidValueError: if a parameter or a value is not what its distribution allows; nothing has
            changed then.
        """
        program, inputs = self._choose(args, kwargs)
        with_gradient = torch.is_grad_enabled()
        run = program.gradient if with_gradient else program.loss
        tensors = inputs + [self._shown(name) for name in program.averages] if with_gradient else inputs
        checked = _Checked() if program.checks else None
        before = _RandomState(tensors) if program.checks else None
        with without_autocast(tensors):
            loss: Tensor = Loss.apply(run, tensors, checked, *(tensors[i] for i in run.gradient_of))
        if checked is not None and before is not None:
            if not checked.valid:
                before.restore()
                broken = program.broken_checks(inputs)
                before.restore()
                raise InvalidValueError(
                    f"the call is not valid: {'; '.join(broken) or UNTOLD}",
                    remedy="nothing has changed: look at the parameters and the arguments",
                )
        if loss.is_cpu and math.isnan(loss.item()):
            warnings.warn("Encountered NaN: loss", stacklevel=2)  # as Pyro says it
        return loss

    def sample(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A draw from the guide: the value of each of its latent sites by name, as ``poutine.trace(guide)`` would give.

        Parameters are not checked, and no gradient passes through. Vectorized particles are drawn all at once.

        :param args: those of a call, likewise ``kwargs``.
        :raises sgc.errors.ArgumentError: as in a call.
        """
        program, inputs = self._choose(args, kwargs)
        return program.sample(inputs)

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[SavedProgram, list[Tensor]]:
        refused: list[ArgumentError] = []
        for program in self._programs:
            try:
                inputs = program.inputs_of(args, kwargs, self._shown)
            except ArgumentError as error:
                refused.append(error)
                continue
            self._latest = program
            return program, inputs
        if len(refused) > 1:
            refused[-1].add_note(f"none of the {len(refused)} programs in the file is for these arguments")
        raise refused[-1]

    @property
    def graph(self) -> SavedGraph:
        """The stochastic computation graph of the program that was called last, or saved last."""
        return self._latest.graph

    @property
    def module(self) -> fx.GraphModule:
        """Its fx module: of inputs and averages, gives the loss, the gradients, and whether the call was valid."""
        return self._latest.module

    @property
    def code(self) -> str:
        """The Python of :attr:`module`."""
        return str(self.module.code)

    def calls(self) -> str:
        """The arguments that it takes, a line for each program of the file."""
        return "\n".join(map(str, self._programs))

    def extra_repr(self) -> str:
        """The same."""
        return self.calls()

    def contents(self) -> Contents:
        """What is written into a file where it is saved again: the same, with the present values."""
        tensors = [*self._contents.tensors]
        for name, (number, _) in self._contents.names.items():
            tensors[number] = self._shown(name)
        return Contents(tensors, self._contents.names, self._contents.programs)


def holder_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a tensor of this dotted name, made if it is not there, and the last part of the name."""
    *path, last = name.split(".")
    holder = root
    for part in path:
        child = holder._modules.get(part)
        if child is None:
            child = holder._modules[part] = nn.Module()
        holder = child
    return holder, last


UNTOLD = "a matrix that has no factor or inverse, or something in a later particle"


class _RandomState:
    """Torch's random state, on the CPU and on the device of the first tensor, to be put back."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._cpu = torch.get_rng_state()
        device = tensors[0].device if tensors else torch.device("cpu")
        self._of_device: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._other = None if self._of_device is None else self._of_device.get_rng_state(device)
        self._device = device

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._of_device is not None:
            self._of_device.set_rng_state(self._other, self._device)
