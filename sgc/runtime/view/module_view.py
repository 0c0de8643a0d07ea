"""The tensors of a program as those of one ``nn.Module``, wherever they are kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sgc.errors import ArgumentError, NotInitializedWarning, ReplacedParameterWarning, SgcError
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.turns import TURN
from sgc.runtime.view import copies
from sgc.runtime.view.average_tree import AverageTree
from sgc.runtime.view.tensor_tree import TensorTree, inside, network_name
from sgc.tracing.prototype import PrototypeRun
from sgc.tracing.source import warn
from sgc.tracing.state.owners import ArgumentOwner, FixedOwner, ModuleOwner, Owner, StoreOwner
from sgc.tracing.state.param_store import PYROS, Store


class Showing(nn.Module):
    """Shows the parameters and buffers of a model and guide, so that ``parameters()``, ``state_dict()`` and ``to()``
    reach them: of modules, of Pyro's store, and closed-over ones.

    A deep copy has all of them for itself, a pickle brings their values (:mod:`sgc.runtime.view.copies`).
    """

    _OF_CAPTURES: frozenset[str] = frozenset()
    """Attributes that a copy has none of, as they are about what was captured."""

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        super().__init__()
        for name, part in (("model", model), ("guide", guide)):
            if not callable(part):
                raise ArgumentError(
                    f"the {name} is not callable: {part!r}",
                    remedy=f"pass the {name} itself, not what a call of it returns",
                )
        self._begin((model, guide), PYROS)

    def _begin(self, program: tuple[Callable[..., Any], Callable[..., Any]], store: Store) -> None:
        """Nothing is captured yet."""
        model, guide = self._program = program
        self._store = store
        self._names: dict[str, None] = {}  # those that the program has asked the store for
        self._is_initialized = False
        self._replaced: list[tuple[str, weakref.ref[Tensor]]] = []  # parameters that were shown, and are used no more
        if isinstance(model, nn.Module):
            self.model = model
        if isinstance(guide, nn.Module) and guide is not model:
            self.guide = guide
        self.networks = nn.ModuleDict()
        self.param_store = TensorTree()
        self.closed_over = TensorTree()
        self.baselines = AverageTree(store)

    def __copy__(self) -> Showing:
        """Another one of the same tensors, which has captured nothing."""
        return copies.shallow(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Showing:
        """One with tensors of its own, which has captured nothing.

        :raises sgc.errors.CopyError: if the program is a function that keeps trained tensors where no copy reaches.
        """
        return copies.deep(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        """For a pickle, which brings the values of all tensors and nothing that was captured.

        :raises sgc.errors.CopyError: if the program is a function that keeps trained tensors where no pickle reaches.
        """
        return copies.pickled(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        copies.unpickle(self, state)

    @contextmanager
    def param_store_scope(self) -> Iterator[None]:
        """Inside, ``pyro.param`` gives the parameters of this loss module, and so does ``Predictive``.

        It makes a difference for a copy only, whose parameters are not in Pyro's store. Calls of other loss modules go
        on finding their own. Other threads wait with theirs until its end.
        """
        with TURN, self._store.lent():
            yield

    # -- what torch's modules do with their tensors

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module. Before the first call it warns that those are missing which are not there yet.

        An ``nn.Parameter`` or, of Pyro's store, a leaf tensor.
        """
        self._warn_if_not_initialized("parameters()")
        self._show_present()
        return super().named_parameters(prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """As of any module."""
        self._show_present()
        return super().named_buffers(prefix, recurse, remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module. Before the first call it warns that those are missing which are not there yet."""
        self._warn_if_not_initialized("state_dict()")
        self._show_present()
        return super().state_dict(*args, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module."""
        self._show_present()
        for child in self.children():
            child.zero_grad(set_to_none)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """What ``load_state_dict`` calls first, of this module and of one that it is a part of.

        :raises sgc.errors.SgcError: if there are values for tensors that are not there yet.
        """
        self._show_present()
        if not self._is_initialized:
            children = self.named_children()
            known = {prefix + name for child, module in children for name in module.state_dict(prefix=f"{child}.")}
            early = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix) and name not in known]
            if early:
                raise SgcError(
                    f"load_state_dict has values for {', '.join(early)}, which are not there before the first call",
                    remedy="call loss_module.initialize(*args) first, with the arguments of a call",
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What ``to()``, ``double()`` and the like call."""
        self._show_present()
        return super()._apply(fn, recurse)

    def _is_known_in_full(self) -> bool:
        """Whether nothing can be missing before the first call: both parts are modules that have parameters."""
        parts = [part for part in self._program if isinstance(part, nn.Module)]
        return len(parts) == 2 and all(any(True for _ in part.parameters()) for part in parts)

    def _warn_if_not_initialized(self, called: str) -> None:
        if not self._is_initialized and not self._is_known_in_full():
            warn(
                f"{called} before the first call lacks what model and guide make when they run (pyro.param, networks "
                "that functions use). Call loss_module.initialize(*args) first, with the arguments of a call.",
                NotInitializedWarning,
            )

    # -- which tensors those are

    def _modules_of(self) -> list[nn.Module]:
        own = [part for part in self._program if isinstance(part, nn.Module)]
        return [*own, *self.networks.values()]

    def _adopt(self, prototype: PrototypeRun) -> None:
        """Show the closed-over networks."""
        self._names.update(dict.fromkeys(prototype.params))
        known = {id(module) for module in self._modules_of()}
        for module in prototype.modules:
            if id(module) not in known:
                name = network_name(module)
                number = 1
                while name in self.networks:
                    name, number = f"{network_name(module)}_{number}", number + 1
                self.networks[name] = module

    def _show_tensors(self, made: Specialization) -> None:
        shown = inside(self._modules_of())
        for name, owner in made.owners.items():
            tensor = owner.fetch()
            if isinstance(owner, (ArgumentOwner, ModuleOwner)) or tensor is None or id(tensor) in shown:
                continue
            if isinstance(owner, StoreOwner):
                self._show(self.param_store, name, tensor, owner)
            elif isinstance(owner, FixedOwner) and tensor.requires_grad and tensor.is_leaf:
                self.closed_over.put(name, tensor, owner)
        self.baselines.show(made.baselines)

    def _show_asked(self, names: Iterable[str]) -> None:
        """Show the parameters of these names that are not shown yet: those of a branch that was not captured."""
        shown = inside([self])
        self._names.update(dict.fromkeys(names))
        for name in names:
            tensor = self._store.get(name)
            if tensor is not None and id(tensor) not in shown:
                self._show(self.param_store, name, tensor, StoreOwner(name, self._store))

    def _show_present(self) -> None:
        """Show the tensors that stand under their names in the param store now: it may have been loaded."""
        for tree in (self.param_store, self.baselines):
            for name, tensor, owner in [*tree.entries()]:
                current = owner.fetch()
                if current is not None and current is not tensor:
                    self._show(tree, name, current, owner)

    def _show(self, tree: TensorTree, name: str, tensor: Tensor, owner: Owner) -> None:
        before = tree.put(name, tensor, owner)
        if before is not None and before is not tensor and tree is not self.baselines:
            self._replaced.append((name, weakref.ref(before)))

    def _forget_replaced(self) -> None:
        """Do not warn of the parameters that were replaced so far."""
        if self._replaced:
            self._replaced = []

    def _tell_of_replaced(self) -> None:
        """Warn of parameters that were replaced while someone keeps the tensors that they were: an optimizer."""
        replaced, self._replaced = self._replaced, []
        names = dict.fromkeys(name for name, before in replaced if self._store.is_held_elsewhere(before))
        if names:
            warn(
                f"{', '.join(names)} was replaced by another tensor (the param store was cleared or loaded, say), and "
                "something still holds the one before, which nothing uses any more. An optimizer that does so trains "
                "nothing: make a new one from loss_module.parameters().",
                ReplacedParameterWarning,
            )
