"""Copies and pickles of a loss module: whose tensors are whose.

A shallow copy has the tensors of the original. A deep copy has its own: modules are copied as ``copy.deepcopy`` does,
and so is the param store, into one that the copy has for itself. A pickle holds the values; they go into Pyro's store
in the process that loads it, or, where that has such names already, into a store of the loaded module's own.

Functions are copied and pickled by reference. What a function closes over, or finds among its globals, is that of the
original then: trained tensors among it are refused.
"""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sgc.errors import CopyError, SourceLine
from sgc.runtime.view.tensor_tree import TensorTree
from sgc.tracing.state.owners import FixedOwner, Owner, StoreOwner
from sgc.tracing.state.param_store import Store, store_of

if TYPE_CHECKING:
    from sgc.runtime.view.module_view import Showing

_TREES = ("param_store", "closed_over", "baselines")
_OF_PROGRAM = frozenset(("_program", "_modules", "_store", "_names", "_is_initialized", "_replaced"))


def shallow(shown: Showing) -> Showing:
    """Another loss module of the same model, guide and tensors."""
    other = _bare(shown)
    other.__dict__.update(_attributes(shown))
    other._begin(shown._program, shown._store)
    _show_again(shown, other, lambda module: module, lambda tensor: tensor)
    return other


def deep(shown: Showing, memo: dict[int, Any]) -> Showing:
    """One whose tensors are copies.

    :param memo: of ``copy.deepcopy``.
    :raises CopyError: if the program holds trained tensors where the copy does not reach.
    """
    other = memo[id(shown)] = _bare(shown)
    program = copy.deepcopy(shown._program, memo)
    _refuse_what_functions_keep(shown, memo.__contains__, "copied")
    other.__dict__.update(copy.deepcopy(_attributes(shown), memo))
    other._begin(program, shown._store.copied(memo))
    _show_again(shown, other, lambda module: memo.get(id(module), module), lambda tensor: copy.deepcopy(tensor, memo))
    return other


def pickled(shown: Showing) -> dict[str, Any]:
    """The state for a pickle.

    :raises CopyError: if the program holds trained tensors where the pickle does not reach.
    """
    reached = _reached(shown._program)
    _refuse_what_functions_keep(shown, reached.__contains__, "pickled")
    averages = [owner.name for _, _, owner in shown.baselines.entries() if isinstance(owner, StoreOwner)]
    return {
        "attributes": _attributes(shown),
        "program": shown._program,
        "names": [*shown._names],
        "store": shown._store.state([*shown._names, *averages]),
        "networks": dict(shown.networks.items()),
        "trees": {tree: [*_portable(getattr(shown, tree))] for tree in _TREES},
        "sites": sorted(shown.baselines.sites),
        "initialized": shown._is_initialized,
    }


def unpickle(shown: Showing, state: dict[str, Any]) -> None:
    """Make a bare loss module the one whose state this is."""
    nn.Module.__init__(shown)
    shown.__dict__.update(state["attributes"])
    shown._begin(state["program"], store_of(state["store"]))
    shown._names.update(dict.fromkeys(state["names"]))
    shown._is_initialized = state["initialized"]
    shown.networks.update(state["networks"])
    shown.baselines.sites.update(state["sites"])
    for tree, entries in state["trees"].items():
        for name, in_store, tensor in entries:
            _put(getattr(shown, tree), name, in_store, tensor, shown._store)


def _bare(shown: Showing) -> Showing:
    other: Showing = object.__new__(type(shown))
    nn.Module.__init__(other)
    return other


def _attributes(shown: Showing) -> dict[str, Any]:
    """What has nothing to do with the program's tensors: options, hooks, modes."""
    left_out = _OF_PROGRAM | shown._OF_CAPTURES
    return {name: value for name, value in vars(shown).items() if name not in left_out}


def _show_again(
    shown: Showing, other: Showing, module_of: Callable[[nn.Module], nn.Module], tensor_of: Callable[[Tensor], Tensor]
) -> None:
    """Let a copy show at once what the original does."""
    other._names.update(shown._names)
    other._is_initialized = shown._is_initialized
    other.baselines.sites.update(shown.baselines.sites)
    other.networks.update({name: module_of(module) for name, module in shown.networks.items()})
    for tree in _TREES:
        for name, in_store, tensor in _portable(getattr(shown, tree)):
            _put(getattr(other, tree), name, in_store, tensor_of(tensor), other._store)


def _portable(tree: TensorTree) -> Iterator[tuple[str, str | None, Tensor]]:
    """Its entries: name, name in the param store if it is there, and tensor."""
    for name, tensor, owner in tree.entries():
        yield name, owner.name if isinstance(owner, StoreOwner) else None, tensor


def _put(tree: TensorTree, name: str, in_store: str | None, tensor: Tensor, store: Store) -> None:
    owner: Owner = FixedOwner(tensor)
    if in_store is not None:
        owner, current = StoreOwner(in_store, store), store.get(in_store)
        if current is None:
            return  # the store was cleared
        tensor = current
    tree.put(name, tensor, owner)


# -- what functions keep


def _refuse_what_functions_keep(shown: Showing, is_reached: Callable[[int], bool], done: str) -> None:
    for name, module in shown.networks.items():
        if not is_reached(id(module)) and _is_trained(module):
            raise _kept_by_a_function(shown, module, f"the {type(module).__name__} {name!r}", done)
    for name, tensor, _ in shown.closed_over.entries():
        if not is_reached(id(tensor)):
            raise _kept_by_a_function(shown, tensor, f"the trained tensor {name!r}", done)


def _is_trained(module: nn.Module) -> bool:
    """Whether training changes a module: its parameters, or its buffers in train mode."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(inner.training and any(True for _ in inner.buffers(recurse=False)) for inner in module.modules())


def _kept_by_a_function(shown: Showing, kept: Any, what: str, done: str) -> CopyError:
    holder, called = _holder(shown._program, kept)
    return CopyError(
        f"{what} cannot be {done} with the loss module: "
        + (f"it is {called} of a function" if called else "a function uses it")
        + f", and functions are {done} by reference",
        source=holder,
        remedy="make model and guide methods of an object that holds it (an nn.Module, say), or keep "
        "loss_module.state_dict(), to be loaded after initialize(*args)",
    )


def _holder(program: tuple[Callable[..., Any], ...], kept: Any) -> tuple[SourceLine | None, str]:
    """Where a function names something, and as what, if model or guide does so itself."""
    for part in program:
        code = getattr(part, "__code__", None)
        if not isinstance(part, types.FunctionType) or code is None:
            continue
        line = SourceLine(code.co_filename, code.co_firstlineno, part.__qualname__)
        for name, cell in zip(code.co_freevars, part.__closure__ or (), strict=True):
            if cell.cell_contents is kept:
                return line, f"the variable {name!r}"
        for name in code.co_names:
            if part.__globals__.get(name) is kept:
                return line, f"the global {name!r}"
    return None, ""


class _Reaching(pickle.Pickler):
    """Goes where a pickle goes and writes no values; notes the modules and tensors on its way."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.reached: dict[int, Any] = {}

    def persistent_id(self, value: Any) -> str | None:
        if isinstance(value, (nn.Module, Tensor, torch.UntypedStorage)):
            self.reached[id(value)] = value
        by_reference = (Tensor, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
        return "" if isinstance(value, by_reference) else None


def _reached(program: tuple[Callable[..., Any], ...]) -> dict[int, Any]:
    """The modules and tensors that a pickle of model and guide holds."""
    pickler = _Reaching()
    pickler.dump(program)
    return pickler.reached
