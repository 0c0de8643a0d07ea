"""How the arguments of a call are put together, as data, and the leaves of a call that is put together so."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import TreeSpec, tree_flatten

from sgc.errors import ArgumentError, SavedProgramError

LEAF = "leaf"


def structure_as_data(spec: Any) -> dict[str, Any]:
    """The structure of a call (:class:`sgc.guards.base.Call`).

    :raises sgc.errors.SavedProgramError: if a function is among the arguments, or a mapping with keys of other kinds.
    """
    if isinstance(spec, tuple):
        count, *names = spec
        return {"args": [LEAF] * count, "kwargs": dict.fromkeys(names, LEAF)}
    if not isinstance(spec, TreeSpec):
        raise SavedProgramError(
            "a functools.partial is among the arguments, which no file holds", remedy="pass its tensors as arguments"
        )
    args, kwargs = spec.children()
    return {
        "args": [_as_data(child) for child in args.children()],
        "kwargs": {name: _as_data(child) for name, child in zip(kwargs.context, kwargs.children(), strict=True)},
    }


def _as_data(spec: TreeSpec) -> Any:
    if spec.is_leaf():
        return LEAF
    parts = [_as_data(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return [spec.type.__name__, parts]
    if spec.type is dict:
        if not all(isinstance(key, (str, int)) for key in spec.context):
            raise SavedProgramError(
                "an argument is a dict with keys that are neither texts nor whole numbers, which no file holds",
                remedy="use texts for keys",
            )
        return ["dict", parts, list(spec.context)]
    return ["other", parts, _class_name(spec), _fields(spec)]


def _class_name(spec: TreeSpec) -> str:
    """What a container is called: a named tuple by its own class, which torch keeps as the context."""
    made = spec.context if isinstance(spec.context, type) else spec.type
    return str(made.__qualname__)


def _fields(spec: TreeSpec) -> str:
    """What else there is to its structure, as text: the keys of an ordered dict, say."""
    return "" if isinstance(spec.context, type) else repr(spec.context)


def leaves_of(structure: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The leaves of the arguments of a call, in their order.

    :raises sgc.errors.ArgumentError: if the arguments are put together otherwise.
    """
    expected, named = structure["args"], structure["kwargs"]
    if len(args) != len(expected) or kwargs.keys() != named.keys():
        raise ArgumentError(
            f"called with {_counted(len(args), list(kwargs))}; the program was saved for "
            f"{_counted(len(expected), list(named))}",
            remedy="pass as many arguments, under the same names, as before it was saved",
        )
    leaves: list[Any] = []
    for position, (part, value) in enumerate(zip(expected, args, strict=True)):
        _take(part, value, f"args[{position}]", leaves)
    for name, part in named.items():
        _take(part, kwargs[name], f"kwargs[{name!r}]", leaves)
    return leaves


def _counted(count: int, names: list[str]) -> str:
    return f"{count} argument{'s' * (count != 1)}" + "".join(f", {name}=" for name in names)


def _take(structure: Any, value: Any, name: str, leaves: list[Any]) -> None:
    if structure == LEAF:
        leaves.append(value)
        return
    kind, parts, *more = structure
    if kind in ("list", "tuple"):
        _expect(type(value).__name__ == kind and len(value) == len(parts), value, name, f"{kind} of {len(parts)}")
        children = [(f"{name}[{i}]", child) for i, child in enumerate(value)]
    elif kind == "dict":
        keys = more[0]
        _expect(type(value) is dict and value.keys() == set(keys), value, name, f"dict with the keys {keys}")
        children = [(f"{name}[{key!r}]", value[key]) for key in keys]
    else:
        below, spec = tree_flatten(value, is_leaf=lambda part: part is not value)
        alike = not spec.is_leaf() and [_class_name(spec), _fields(spec)] == more and len(below) == len(parts)
        _expect(alike, value, name, f"{more[0]} of {len(parts)}")
        children = [(f"{name}.{i}", child) for i, child in enumerate(below)]
    for part, (below_name, child) in zip(parts, children, strict=True):
        _take(part, child, below_name, leaves)


def _expect(holds: bool, value: Any, name: str, kind: str) -> None:
    if not holds:
        count = f" of {len(value)}" if isinstance(value, (list, tuple, dict)) else ""
        raise ArgumentError(
            f"{name} is a {type(value).__name__}{count}; the program was saved for a {kind}",
            remedy="put the arguments together as before",
        )


def check_structure(structure: Any) -> int:
    """How many leaves a structure of a file has.

    :raises ValueError: if it is none.
    """
    if not isinstance(structure, dict) or structure.keys() != {"args", "kwargs"}:
        raise ValueError("arguments that are put together in no way")
    return sum(map(_check, [*structure["args"], *structure["kwargs"].values()]))


def _check(structure: Any) -> int:
    if structure == LEAF:
        return 1
    kind, parts, *more = structure
    as_many = {"list": 0, "tuple": 0, "dict": 1, "other": 2}[kind]
    if len(more) != as_many or (kind == "dict" and len(set(more[0])) != len(parts)):
        raise ValueError("arguments that are put together in no way")
    return sum(map(_check, parts))
