"""``sgc.save``: writes a compiled loss into a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import sgc
from sgc.errors import ArgumentError, SavedProgramError
from sgc.saved.archive import write_archive
from sgc.saved.contents import FORMAT, Contents
from sgc.saved.loaded_loss import LoadedLoss
from sgc.saved.plain_values import plain_as_data
from sgc.saved.tensor_bytes import tensor_as_data

if TYPE_CHECKING:
    from sgc.infer.svi import SVI
    from sgc.runtime.loss_module import LossModule


def save(
    loss: LossModule | LoadedLoss | SVI, path: str | os.PathLike[str], *, optimizer: Optimizer | None = None
) -> None:
    """Write a compiled loss into a file, from which :func:`sgc.load` makes it again without Pyro or the model's code.

    The file holds the program that was called last, and those compiled before it that fit the present modes of modules
    and what is around the model, as they run on the eager backend; parameters, buffers and averages of baselines; no
    code and no pickle (:mod:`sgc.saved`). It is there whole or not at all: what was there before stays until then.

    :param loss: one that was called, or initialized; or one that was loaded; or an ``SVI`` with an optimizer of
        torch's, which is saved with its loss.
    :param optimizer: one of torch's, to be saved with it: ``sgc.load(path).optimizer_state`` is its state.
    :raises sgc.errors.SavedProgramError: if no file can hold it: an opaque call of Python, an operator that is not
        torch's own, an argument that is a function or an object.
    :raises sgc.errors.ArgumentError: if one of the arguments is of another kind.
    :raises sgc.errors.SgcError: if nothing was captured yet.
    :raises OSError: if the file cannot be written.
    """
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"the optimizer to be saved is a {type(optimizer).__name__}", remedy="pass one of torch.optim, or None"
        )
    if isinstance(loss, LoadedLoss):
        contents = loss.contents()
    else:
        loss_module, own_optimizer = _compiled(loss)
        contents, optimizer = _captured(loss_module), optimizer or own_optimizer
    own = len(contents.tensors)
    if optimizer is not None:
        contents.optimizer = plain_as_data("the optimizer's state", optimizer.state_dict(), contents.keep)
    write_archive(Path(path), _entries(contents, own))


def _compiled(loss: LossModule | SVI) -> tuple[LossModule, Optimizer | None]:
    """The loss module to be saved, and the optimizer of an SVI."""
    from sgc.infer.svi import SVI
    from sgc.runtime.loss_module import LossModule
    from sgc.training.optimizers.adapters import TorchOptimizing

    if isinstance(loss, LossModule):
        return loss, None
    if not isinstance(loss, SVI):
        raise ArgumentError(
            f"sgc.save takes a loss module or an SVI, not a {type(loss).__name__}",
            remedy="pass what sgc.compile, sgc.SVI or sgc.load returned",
        )
    optimizing = loss.stepper.optimizing
    if not isinstance(optimizing, TorchOptimizing):
        raise ArgumentError(
            "an optimizer of pyro.optim has one of torch's for each parameter, which no file holds",
            remedy="pass svi.loss_module, to save the loss without it",
        )
    return loss.loss_module, optimizing.optimizer


def _captured(loss_module: LossModule) -> Contents:
    from sgc.saved.captured import contents_of  # which imports Pyro

    return contents_of(loss_module)


def _entries(contents: Contents, own: int) -> Iterator[tuple[str, bytes]]:
    """The entries of the file; tensors from the number ``own`` on are the optimizer's."""
    shown = {number: name for name, (number, _) in reversed(contents.names.items())}
    noted, elements = [], []
    for number, tensor in enumerate(contents.tensors):
        about, content = tensor_as_data(shown.get(number, "a constant of the program"), tensor)
        noted.append(about | {"requires_grad": _is_trained(tensor)})
        elements.append(content)
    manifest = {
        "format": FORMAT,
        "sgc": sgc.__version__,
        "torch": torch.__version__,
        "byteorder": sys.byteorder,
        "programs": len(contents.programs),
        "names": {name: [number, kind] for name, (number, kind) in contents.names.items()},
        "tensors": noted,
        "own": own,
        "optimizer": contents.optimizer,
    }
    yield "manifest.json", _json(manifest)
    for number, program in enumerate(contents.programs):
        yield f"programs/{number}.json", _json(program)
    for number, content in enumerate(elements):
        yield f"tensors/{number}", content


def _is_trained(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_leaf


def _json(data: Any) -> bytes:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError as error:
        raise SavedProgramError("the arguments are nested too deeply for a file") from error
