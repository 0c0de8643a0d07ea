"""``sgc.load``: makes a loss of a file, without Pyro, without the model's code, and without running anything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from sgc.errors import SavedProgramError
from sgc.saved.archive import as_written, read_archive
from sgc.saved.contents import FORMAT, KINDS, Contents
from sgc.saved.loaded_loss import LoadedLoss, Written
from sgc.saved.plain_values import plain_of_data
from sgc.saved.saved_program import SavedProgram
from sgc.saved.tensor_bytes import tensor_of_data


def load(path: str | os.PathLike[str]) -> LoadedLoss:
    """Make a loss of a file that :func:`sgc.save` has written.

    Nothing in the file is run, and nothing is imported for it, wherever it comes from. Its tensors take the memory that
    they take on disk, on the devices that they were on.

    :raises sgc.errors.SavedProgramError: if another program has written the file, it is damaged, it was written by a
        later version, or its devices are not there.
    :raises OSError: if it cannot be read.
    """
    path = Path(path)
    entries = read_archive(path)
    with as_written(path):
        manifest = _json(entries.pop("manifest.json"))
        written = Written(int(manifest["format"]), str(manifest["sgc"]), str(manifest["torch"]))
        if written.format != FORMAT:
            raise SavedProgramError(
                f"{path} is of format {written.format}, written by sgc {written.sgc}; this sgc reads format {FORMAT}",
                remedy=f"install sgc {written.sgc} or newer",
            )
        if manifest["byteorder"] != sys.byteorder:
            raise SavedProgramError(
                f"{path} was written on a {manifest['byteorder']}-endian machine",
                remedy="load it on a machine of the same byte order",
            )
        tensors = [_tensor(path, noted, entries.pop(f"tensors/{i}")) for i, noted in enumerate(manifest["tensors"])]
        programs = [_json(entries.pop(f"programs/{number}.json")) for number in range(manifest["programs"])]
        if entries or not programs:
            raise ValueError(f"entries that belong to nothing: {sorted(entries)}")
        optimizer, own = plain_of_data(manifest["optimizer"], tensors), tensors[: int(manifest["own"])]
        made = [SavedProgram(program, own) for program in programs]
        names = {name: _named(number, kind, len(own)) for name, (number, kind) in manifest["names"].items()}
        for number in {number for number, kind in names.values() if kind == "parameter"}:
            own[number] = nn.Parameter(own[number], requires_grad=bool(manifest["tensors"][number]["requires_grad"]))
        contents = Contents(own, names, programs, optimizer)
        return LoadedLoss(contents, made, written)


def _tensor(path: Path, noted: dict[str, Any], content: bytes) -> Tensor:
    try:
        return tensor_of_data(noted, content)
    except (RuntimeError, AssertionError) as error:  # torch was built without that device, or there is none
        raise SavedProgramError(
            f"a tensor of {path} cannot be made on {noted['device']}: {error}".splitlines()[0],
            remedy="load it where that device is, or save the loss on the CPU",
        ) from error


def _named(number: Any, kind: Any, tensors: int) -> tuple[int, str]:
    if type(number) is not int or not 0 <= number < tensors or kind not in KINDS:
        raise ValueError("a name for nothing")
    return number, kind


def _json(content: bytes) -> Any:
    data = json.loads(content.decode(), parse_constant=_refuse_constant)
    if not isinstance(data, dict):
        raise ValueError("an entry that is no mapping")
    return data


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
