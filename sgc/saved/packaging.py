"""``sgc.package``: compiles a loss ahead of time, into a package that torch alone loads and runs."""

from __future__ import annotations

import errno
import keyword
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sgc.emit.fx.module_laws import devices
from sgc.emit.inductor.ahead_of_time import compile_ahead_of_time
from sgc.errors import ArgumentError, BackendError, InvalidValueError, SavedProgramError
from sgc.graph.aliasing import copies, shared
from sgc.saved.call_structure import leaves_of
from sgc.saved.loaded_loss import UNTOLD, LoadedLoss
from sgc.saved.loading import load
from sgc.saved.packaged_function import Computation, PackagedFunction, guide_sample, loss_alone, loss_and_gradients
from sgc.saved.saved_program import SavedProgram, without_autocast
from sgc.saved.saving import save

if TYPE_CHECKING:
    from sgc.infer.svi import SVI
    from sgc.runtime.loss_module import LossModule

Call = tuple[tuple[Any, ...], dict[str, Any]]

_SEEDS = range(3)
"""What was compiled is compared under these. One is enough: where a value is rounded otherwise, a sample may be another
one."""


def package(loss: LossModule | LoadedLoss | SVI, path: str | os.PathLike[str], /, *args: Any, **kwargs: Any) -> None:
    """Compile a loss by AOTInductor into a package (``.pt2``) that torch runs without sgc, Pyro or the model's code.

    ``torch._inductor.package.load_package(path, name)`` loads one of its models:

    - ``"loss"``: minus the ELBO (0-d, in nats);
    - ``"gradient"``: a dict of the ``"loss"``, the surrogate's ``"gradients"``, and the new values of what the program
      has ``"written"`` into (averages of baselines, statistics), each by name;
    - ``"sample"``: a dict of a draw of each latent site of the guide, if it has any.

    Each takes the arguments of a call: tensors of the sizes, dtypes and strides of these, a number that is an input as
    a 0-d tensor. Each draws from torch's generator, what :func:`sgc.load` of the saved loss would draw, and changes
    nothing. A call that is not valid raises. ``load_constants`` takes other parameters, buffers and averages, by the
    names of ``state_dict()``.

    Each model is compiled, and then run and compared. The file is there whole or not at all.

    :param loss: one that was called, or initialized; or one that was loaded; or an ``SVI``.
    :param path: ends in ``.pt2``.
    :param args: those of a call that is valid, likewise ``kwargs``: the package is for such calls, on this kind of
        processor.
    :raises sgc.errors.SavedProgramError: if no file can hold the program, or no package can.
    :raises sgc.errors.ArgumentError: if the loss was not called with such arguments, or one is of another kind.
    :raises sgc.errors.InvalidValueError: if the call is not valid.
    :raises sgc.errors.BackendError: if AOTInductor cannot compile it on this machine.
    :raises OSError: if the file cannot be written.
    """
    path = Path(path).absolute()
    if path.suffix != ".pt2":
        raise ArgumentError(f"torch loads no package from {path.name}", remedy="let the name of the file end in .pt2")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such directory for a package", str(path.parent))
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory, torch.random.fork_rng(devices=[]):
        place = Path(directory)
        save(_without_optimizer(loss), place / "loss.sgc")
        loaded = load(place / "loss.sgc")
        program, inputs = loaded._choose(args, kwargs)
        _refuse(program, inputs)
        with torch.no_grad(), without_autocast(inputs):
            functions = _functions(loaded, program, inputs)
            _write(place, path.name, functions, _example(program, inputs, args, kwargs))
        (place / path.name).replace(path)


def _without_optimizer(loss: LossModule | LoadedLoss | SVI) -> LossModule | LoadedLoss | SVI:
    if isinstance(loss, LoadedLoss):
        return loss
    from sgc.infer.svi import SVI  # which imports Pyro

    return loss.loss_module if isinstance(loss, SVI) else loss


def _refuse(program: SavedProgram, inputs: list[Tensor]) -> None:
    """Refuse a call that no package is for."""
    for name in program.shown:
        if not _can_be_shown(name, program.shown):
            raise SavedProgramError(
                f"{name} is no name that torch.export can give a tensor",
                remedy="choose one without a keyword of Python or an attribute of nn.Module (type, half) between its "
                "dots, with which no other name goes on",
            )
    if shared(inputs, program.written):
        raise SavedProgramError(
            "two tensors of the call share memory that the program writes into; a package writes into copies",
            remedy="pass tensors with memory of their own",
        )
    torch.default_generator.manual_seed(_SEEDS[0])
    with torch.no_grad(), without_autocast(inputs):
        if not program.checks or program.loss.run(*copies(inputs))[-1]:
            return
    torch.default_generator.manual_seed(_SEEDS[0])
    broken = program.broken_checks(inputs)
    raise InvalidValueError(
        f"the call is not valid: {'; '.join(broken) or UNTOLD}",
        remedy="package the loss with parameters and arguments of a valid call",
    )


def _can_be_shown(name: str, names: list[str]) -> bool:
    """Whether generated Python can read a tensor of this name off a module."""
    taken = any(keyword.iskeyword(part) or hasattr(nn.Module(), part) for part in name.split("."))
    return not taken and not any(other.startswith(f"{name}.") for other in names)


def _functions(loaded: LoadedLoss, program: SavedProgram, inputs: list[Tensor]) -> dict[str, PackagedFunction]:
    computed: dict[str, Computation] = {"loss": loss_alone, "gradient": loss_and_gradients}
    if program.sampled:
        computed["sample"] = guide_sample
    functions = {name: PackagedFunction(loaded, program, inputs, compute) for name, compute in computed.items()}
    if not all(devices(function.operators) <= {torch.device("cpu")} for function in functions.values()):
        raise SavedProgramError(
            "the program computes on another device than the CPU, for which there is no package yet",
            remedy="save it by sgc.save, which holds programs of any device",
        )
    return functions


def _example(program: SavedProgram, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call that a package is for: tensors lie in memory as the program expects, numbers that are inputs are 0-d."""
    leaves, structure = tree_flatten((args, kwargs))
    positions, names = tree_unflatten(list(range(len(leaves))), structure)
    order = leaves_of(program.structure, positions, names)
    for (_, where), tensor in zip(program.inputs, inputs, strict=True):
        if isinstance(where, int):
            leaves[order[where]] = tensor
    detached = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    own_args, own_kwargs = tree_unflatten(detached, structure)
    return own_args, own_kwargs


def _write(place: Path, name: str, functions: dict[str, PackagedFunction], call: Call) -> None:
    """Write the package into a directory, with what else is written on the way."""
    from torch._inductor.package.package import load_package, package_aoti

    files: dict[str, Any] = {
        model: compile_ahead_of_time(_exported(model, function, call), place / model)
        for model, function in functions.items()
    }
    package_aoti(str(place / name), files)
    for model, function in functions.items():
        packaged = load_package(str(place / name), model)
        if not any(_outcome(packaged, call, seed).agrees(_outcome(function, call, seed)) for seed in _SEEDS):
            raise BackendError(
                f"the {model} that AOTInductor of torch {torch.__version__} has compiled gives other values than the "
                "program",
                remedy="please report it; sgc.save holds the program as it is",
            )


def _exported(model: str, function: PackagedFunction, call: Call) -> torch.export.ExportedProgram:
    args, kwargs = call
    try:
        return torch.export.export(function, args, kwargs, strict=False)
    except Exception as error:  # of many kinds
        raise SavedProgramError(
            f"torch.export does not take the {model}: {type(error).__name__}: {error}".splitlines()[0],
            remedy="sgc.save holds the program as it is",
        ) from error


@dataclass(frozen=True)
class _Outcome:
    """What a run gives, and the random state that it leaves."""

    results: list[Tensor]
    random_state: Tensor

    def agrees(self, other: _Outcome) -> bool:
        return torch.equal(self.random_state, other.random_state) and all(map(_close, self.results, other.results))


def _outcome(run: Callable[..., Any], call: Call, seed: int) -> _Outcome:
    args, kwargs = call
    torch.default_generator.manual_seed(seed)
    return _Outcome(tree_leaves(run(*args, **kwargs)), torch.get_rng_state())


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two results agree in half of the digits of their dtype."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not (other.is_floating_point() or other.is_complex()) or not other.numel():
        return torch.equal(one, other)
    tolerance = math.sqrt(torch.finfo(other.dtype).eps)
    largest = max(1.0, other.abs().nan_to_num(posinf=0.0).max().item())
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
