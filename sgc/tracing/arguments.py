"""The arguments of a call, taken apart into leaves; ``functools.partial`` is a container here.

``step(data, prior=partial(f, temperature))`` passes the tensor ``temperature`` as much as ``data``. A partial that
holds tensors is taken apart, so that they become inputs of the program; one without is a leaf.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_leaves, tree_unflatten


@dataclass(frozen=True)
class Structure:
    """How arguments are put together: a tree, and for each of its leaves the structure of a partial, if it is one."""

    tree: TreeSpec
    partials: tuple[Structure | None, ...]


def flatten(tree: Any) -> tuple[list[Any], TreeSpec | Structure]:
    """The leaves of a tree, and what puts them together again; a plain spec where no partial holds a tensor."""
    leaves, spec = tree_flatten(tree)
    if not any(_is_container(leaf) for leaf in leaves):
        return leaves, spec
    flat: list[Any] = []
    partials: list[Structure | None] = []
    for leaf in leaves:
        if _is_container(leaf):
            inner, structure = flatten((leaf.func, leaf.args, leaf.keywords))
            partials.append(structure if isinstance(structure, Structure) else Structure(structure, ()))
            flat += inner
        else:
            partials.append(None)
            flat.append(leaf)
    return flat, Structure(spec, tuple(partials))


def unflatten(leaves: list[Any], structure: TreeSpec | Structure) -> Any:
    """The tree of these leaves."""
    if isinstance(structure, TreeSpec):
        return tree_unflatten(leaves, structure)
    if not structure.partials:
        return tree_unflatten(leaves, structure.tree)
    remaining = iter(leaves)
    outer: list[Any] = []
    for inner in structure.partials:
        if inner is None:
            outer.append(next(remaining))
        else:
            func, args, keywords = unflatten([next(remaining) for _ in range(_count(inner))], inner)
            outer.append(functools.partial(func, *args, **keywords))
    return tree_unflatten(outer, structure.tree)


def _count(structure: Structure) -> int:
    nested = sum(_count(inner) - 1 for inner in structure.partials if inner is not None)
    return int(structure.tree.num_leaves) + nested


def argument_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A readable name for each leaf of the arguments, such as ``args[0]['x']``."""
    names = []
    for path, leaf in tree_flatten_with_path((args, kwargs))[0]:
        first, *rest = (keystr((entry,)) for entry in path)
        names += _leaf_names(leaf, ("args" if first == "[0]" else "kwargs") + "".join(rest))
    return names


def _leaf_names(leaf: Any, name: str) -> list[str]:
    if not _is_container(leaf):
        return [name]
    names = []
    for path, inner in tree_flatten_with_path((leaf.func, leaf.args, leaf.keywords))[0]:
        first, *rest = (keystr((entry,)) for entry in path)
        part = {"[0]": ".func", "[1]": ".args", "[2]": ".keywords"}[first]
        names += _leaf_names(inner, name + part + "".join(rest))
    return names


def _is_container(leaf: Any) -> bool:
    """Whether a leaf is a partial with a tensor in it, and nothing but a partial."""
    if type(leaf) is not functools.partial or leaf.__dict__:
        return False
    return any(isinstance(part, Tensor) or _is_container(part) for part in tree_leaves((leaf.args, leaf.keywords)))
