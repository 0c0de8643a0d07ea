"""Files that sgc.save has not written, or not as they are: by mutation of one that it has written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgc.saved.archive import write_archive

Mutation = Callable[[bytes, random.Random], bytes]


class Bomb:
    """Unpickled, it makes the file that a test looks for."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trap),)


def flipped(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 100))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def overwritten(content: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(content))
    length = chance.randrange(1, 200)
    return content[:begin] + chance.randbytes(length) + content[begin + length :]


def lengthened(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 500))


def inserted(content: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(content))
    return content[:begin] + chance.randbytes(chance.randrange(1, 50)) + content[begin:]


def any_bytes(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(0, 3000))


def any_zip(content: bytes, chance: random.Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name in chance.sample(["manifest.json", "../../x", "/etc/x", "data.pkl", "__init__.py", "tensors/0"], 3):
            archive.writestr(name, chance.randbytes(50))
    return made.getvalue()


DAMAGES: tuple[Mutation, ...] = (*(flipped, flipped, truncated, overwritten, lengthened, inserted, any_bytes, any_zip),)
"""What befalls a file by accident."""

# -- files of somebody who knows the format: the digest is right


def sealed(path: Path, entries: dict[str, bytes], compression: int) -> None:
    """Write entries, compressed perhaps, with the digest that they should have."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.comment = b"sgc sha256 " + b"0" * 64
    content = path.read_bytes()[:-64]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def entries_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forged(content: bytes, path: Path, chance: random.Random, trap: Path) -> None:
    """Write a file with the right digest and one thing in it that is not as sgc writes it."""
    entries = entries_of(content)
    kind = chance.choice((_entry, _code, _json, _json, _json, _operator, _name, _size, _bomb))
    kind(entries, chance, trap)
    write_archive(path, entries.items())


def _entry(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    name = chance.choice(list(entries))
    if chance.random() < 0.5:
        del entries[name]
    else:
        entries[name] = chance.randbytes(chance.randrange(len(entries[name]) + 2) + 1)


def _code(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    name = chance.choice(("__main__.py", "../evil.py", "/tmp/evil", "tensors/../../x", "model.pkl", "programs/0.py"))
    entries[name] = f"import os; os.mkdir({str(trap)!r})".encode()


def _bomb(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    entries[chance.choice(list(entries))] = pickle.dumps(Bomb(trap))


_VALUES: tuple[Any, ...] = (
    *(None, -1, 0, 10**30, 2.5, "", "x", [], {}, [[]], {"a": 1}, True, ["node", "nobody"], ["tensor", 10**9]),
    *(
        ["torch", "load"],
        ["torch", "hub"],
        ["device", "cuda:99"],
        ["record", "SourceLine", {}],
        "aten::from_file.default",
    ),
    *("__import__('os')", ["tuple", ["tuple"]], ["slice", 1]),
)


def _json(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    name = chance.choice([name for name in entries if name.endswith(".json")])
    data = json.loads(entries[name])
    at: Any = data
    while True:
        key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        if isinstance(at[key], (dict, list)) and at[key] and chance.random() < 0.85:
            at = at[key]
            continue
        if chance.random() < 0.2:
            del at[key]
        else:
            at[key] = chance.choice(_VALUES)
        break
    entries[name] = json.dumps(data).encode()


OPERATORS = (
    *("aten::from_file.default", "aten::save.default", "aten::set_.source_Storage", "aten::resize_.default"),
    *("os::system.default", "torch.hub.load", "sgc::opaque.default", "aten::_sparse_coo_tensor_unsafe.default"),
    *("aten::__class__.default", "builtins::eval.default", "aten::as_strided_scatter.__call__", "aten::seed.default"),
    *("aten::manual_seed.default", "aten::_print.default", "aten::record_stream.default", "_operator.methodcaller"),
)


def _operator(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    data = json.loads(entries["programs/0.json"])
    nodes = [node for node in data[chance.choice(("gradient", "loss"))] if "::" in node[1]]
    chance.choice(nodes)[1] = chance.choice(OPERATORS)
    entries["programs/0.json"] = json.dumps(data).encode()


def _name(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    """Names end up in Python that fx writes."""
    data = json.loads(entries["programs/0.json"])
    code = f"x):\n  __import__('os').mkdir({str(trap)!r})\n  def f(y"
    nodes = data[chance.choice(("gradient", "loss"))]
    node = chance.choice(nodes[:-1])
    if "::" in node[1] and chance.random() < 0.5:
        node[3:] = [{chance.choice((code, "x=1, **{}", "lambda")): 1}]
    else:
        node[0] = chance.choice((code, "a b", "", "import", "1", "é", "x" * 1000))
    entries["programs/0.json"] = json.dumps(data).encode()


def _size(entries: dict[str, bytes], chance: random.Random, trap: Path) -> None:
    data = json.loads(entries["manifest.json"])
    tensor = chance.choice(data["tensors"])
    tensor[chance.choice(("shape", "strides"))] = chance.choice(
        ([10**12], [2**62, 2**62], [-1], [1.5], ["a"], [10**6] * 10, [None])
    )
    entries["manifest.json"] = json.dumps(data).encode()
