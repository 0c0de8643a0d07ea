"""What a file holds of a loss module: the specializations that fit what is around the model now, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import differentiate, operators_of, without_gradient
from sgc.emit.emitter import emit_surrogate
from sgc.emit.fx.values_as_data import NotPlain, value_as_data
from sgc.emit.rewrites.singular_matrices import failures_are_nan
from sgc.emit.rollback import rolled_back_if_invalid
from sgc.errors import SavedProgramError
from sgc.graph.aliasing import shared
from sgc.graph.effects import ancestors, dependencies, is_random
from sgc.graph.meta_keys import DRAWS, KEEPS
from sgc.graph.program import Input, InputKind, Site, ValueGuard
from sgc.guards.argument_guard import ArgumentGuard
from sgc.guards.base import Call
from sgc.guards.environment.environment_guard import EnvironmentGuard
from sgc.guards.handlers import HandlerGuard
from sgc.guards.metadata import ANY, Meta
from sgc.guards.modes import ModeGuard
from sgc.guards.structure import StructureGuard
from sgc.runtime.compiling import compiling
from sgc.runtime.loss_module import LossModule
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.turns import TURN
from sgc.saved.call_structure import structure_as_data
from sgc.saved.contents import Contents
from sgc.saved.fx_as_data import module_as_data
from sgc.saved.graph_nodes_as_data import graph_as_data
from sgc.saved.size_conditions import formula_as_data
from sgc.tracing.state.owners import ArgumentOwner
from sgc.tracing.state.places import PlaceOwner
from sgc.tracing.symbolic_sizes import SymbolicSizes, tensor_at

_AROUND = (StructureGuard, ModeGuard, EnvironmentGuard, HandlerGuard)
"""Guards of what is around a call, which a file knows nothing of."""


def contents_of(loss_module: LossModule) -> Contents:
    """What a file holds of a loss module.

    :raises sgc.errors.SavedProgramError: if no file can hold it.
    :raises sgc.errors.SgcError: if nothing has been captured yet, or its parameters are gone.
    """
    with TURN:
        latest = loss_module._latest()
        loss_module._refresh()
        contents = Contents()
        chosen = [*filter(_fits, loss_module.specializations[:-1]), latest]
        for specialization in chosen:
            specialization.averages()  # makes those that are not there yet
            loss_module._show_tensors(specialization)
        persistent = loss_module.state_dict()
        for name, parameter in loss_module.named_parameters(remove_duplicate=False):
            contents.show(name, parameter, "parameter")
        for name, buffer in loss_module.named_buffers(remove_duplicate=False):
            contents.show(name, buffer, "buffer" if name in persistent else "constant")
        # A version for any size comes after those for one: they are asked in this order.
        for specialization in sorted(chosen, key=lambda each: each.capture.sizes is not None):
            contents.programs.append(_Saver(specialization, contents).data())
        return contents


def _fits(specialization: Specialization) -> bool:
    """Whether a specialization fits what is around the model now, so that nothing but a call's arguments decides."""
    nothing = Call((), {})
    return all(guard.miss(nothing) is None for guard in specialization.guards if isinstance(guard, _AROUND))


class _Saver:
    """Makes data of one specialization.

    :param contents: takes its tensors.
    """

    def __init__(self, specialization: Specialization, contents: Contents) -> None:
        self._specialization = specialization
        self._contents = contents
        self._program = specialization.capture.program
        self._arguments = next(guard for guard in specialization.guards if isinstance(guard, ArgumentGuard))
        self._leaves = list(self._arguments.leaves())

    def data(self) -> dict[str, Any]:
        """The program as :class:`~sgc.saved.saved_program.SavedProgram` takes it."""
        specialization = self._specialization
        modes = next(guard for guard in specialization.guards if isinstance(guard, ModeGuard))
        leaves = [self._leaf(*leaf) for leaf in self._leaves]
        structure = structure_as_data(self._arguments.structure)
        inputs = [self._input(declared) for declared in specialization.inputs]
        examples = [self._example(declared) for declared in specialization.inputs]
        self._refuse_shared(examples)
        averages = specialization.averages()
        given = specialization.examples([*examples, *averages])
        own = given[: len(inputs)]
        wanted = [i for i, declared in enumerate(specialization.inputs) if self._is_wanted(declared)]
        with compiling(specialization):
            gradient = differentiate(specialization.emitted.module, given, wanted)
            loss = without_gradient(emit_surrogate(specialization.graph, loss_only=True).module, own)
            validity = operators_of(self._conditions(), own) if specialization.checks else None
            if validity is not None:
                failures_are_nan(validity, validates=False)
            reads = [self._read(guard, own) for guard in self._program.value_guards]
            drawn = [site for site in self._program.latent_sites() if site.guide is not None]
            samples = operators_of(self._sampler(drawn), own) if drawn else None
        return {
            "arguments": structure,
            "leaves": leaves,
            "inputs": inputs,
            "averages": [self._name_of(average) for average in averages],
            "gradient": self._nodes(_undone(gradient)),
            "gradient_of": list(gradient.gradient_of),
            "loss": self._nodes(_undone(loss)),
            "validity": None if validity is None else self._nodes(validity),
            "checks": [f"{_OTHER_BRANCH * check.assumed}{check}" for check in specialization.checks],
            "samples": None if samples is None else self._nodes(samples),
            "sampled": [site.name for site in drawn],
            "repeats": specialization.repeats,
            "default_dtype": str(modes.default_dtype).removeprefix("torch."),
            "written": [i for i, declared in enumerate(specialization.inputs) if self._is_written(declared)],
            "sizes": None if specialization.capture.sizes is None else self._sizes(specialization.capture.sizes),
            "reads": reads,
            "graph": graph_as_data(specialization.graph),
        }

    # -- what no file can hold

    def _not_held(self, reason: NotPlain) -> SavedProgramError:
        """The error for a program with something that no file holds; with the site, if it is an opaque call."""
        graph = self._program.module.graph
        calls = [node for node in graph.nodes if KEEPS.of(node) is not None or DRAWS.of(node)]
        if not calls or "sgc." not in str(reason):
            return SavedProgramError(f"the program has {reason}, which no file holds", remedy=_REMEDY)
        depends = dependencies(graph)
        named = {node: site for site in self._program.sites for node in self._nodes_of(site)}
        site = next((named[n] for n in depends if n in named and calls[0] in ancestors([n], depends)), None)
        what = "the program has" if site is None else f"a {site.distribution} is sampled or scored by"
        return SavedProgramError(
            f"{what} a call of Python, which no file holds",
            site=None if site is None else site.name,
            source=None if site is None else site.source,
            remedy=_REMEDY,
        )

    def _nodes_of(self, site: Site) -> Iterator[fx.Node]:
        """The fx nodes of a site's value and densities."""
        densities = [each.log_prob for each in (site.model, site.guide) if each is not None]
        yield from (self._program.node(name) for name in (site.value, *densities) if name is not None)

    def _refuse_shared(self, examples: list[Tensor]) -> None:
        """Refuse tensors that share memory with one that is trained or written: in a file each has its own."""
        inputs = self._specialization.inputs
        fixed = [i for i, declared in enumerate(inputs) if not self._is_brought(declared)]
        own = [examples[i] for i in fixed]
        moving = {j for j, i in enumerate(fixed) if inputs[i].requires_grad or self._is_written(inputs[i])}
        for one, other in shared(own, moving):
            raise SavedProgramError(
                f"{inputs[fixed[one]].name} and {inputs[fixed[other]].name} share memory that is trained or written, "
                "and in a file each has its own",
                remedy="compute the one from the other within the model",
            )

    # -- inputs

    def _is_brought(self, declared: Input) -> bool:
        """Whether a call brings an input among its arguments."""
        owner = self._specialization.owners[declared.name]
        return isinstance(owner, ArgumentOwner) or (isinstance(owner, PlaceOwner) and owner.place.is_argument)

    def _is_wanted(self, declared: Input) -> bool:
        """Whether the gradient of an input is asked for."""
        owner = self._specialization.owners[declared.name]
        expected = self._leaves[owner.position][1] if isinstance(owner, ArgumentOwner) else None
        return declared.requires_grad if expected is None else expected[3]

    def _is_written(self, declared: Input) -> bool:
        return declared.kind is InputKind.BUFFER or declared.name in self._program.written

    def _leaf(self, name: str, expected: Meta | None, value: Any) -> dict[str, Any]:
        if expected is not None:
            shape, dtype, device, requires_grad, strides = expected
            return {
                "kind": "tensor",
                "name": name,
                "shape": [None if size is ANY else int(size) for size in shape],
                "dtype": str(dtype).removeprefix("torch."),
                "device": str(device),
                "requires_grad": requires_grad,
                "strides": None if any(size is ANY for size in shape) else list(strides),
            }
        if isinstance(value, type) and issubclass(value, (float, int)):
            return {"kind": "float" if issubclass(value, float) else "int", "name": name}
        if type(value) not in (type(None), bool, int, float, complex, str):
            raise SavedProgramError(
                f"{name} is a {type(value).__qualname__}, which no file holds",
                remedy="pass tensors, numbers, texts and containers of them; what is the same at each call can be "
                "closed over, or be an attribute of the model",
            )
        return {"kind": "constant", "name": name, "value": value_as_data(value)}

    def _input(self, declared: Input) -> dict[str, Any]:
        owner = self._specialization.owners[declared.name]
        where: int | str
        shape: Sequence[int] = declared.shape
        if isinstance(owner, ArgumentOwner):
            where = owner.position
        elif isinstance(owner, PlaceOwner) and owner.place.is_argument:
            where = owner.place.key
        else:
            tensor = self._fetched(declared)
            where, shape = self._contents.name_of(tensor) or self._constant(declared.name, tensor), tensor.shape
        return {
            "name": declared.name if isinstance(where, int) else where,
            "where": where,
            "shape": list(map(int, shape)),
            "dtype": str(declared.dtype).removeprefix("torch."),
            "device": str(declared.device),
            "requires_grad": self._is_wanted(declared),
        }

    def _fetched(self, declared: Input) -> Tensor:
        tensor = self._specialization.owners[declared.name].fetch()
        if tensor is None:
            raise SavedProgramError(
                f"{declared.name} is gone: the program cannot be called as it is now",
                remedy="call the loss module once more, and save it then",
            )
        return tensor

    def _constant(self, name: str, tensor: Tensor) -> str:
        shown = f"constants.{name}"
        number = 1
        while shown in self._contents.names:
            shown, number = f"constants.{name}_{number}", number + 1
        self._contents.show(shown, tensor, "constant")
        return shown

    def _example(self, declared: Input) -> Tensor:
        """A tensor like an input, or the input itself where no call brings it."""
        if not self._is_brought(declared):
            return self._fetched(declared)
        owner = self._specialization.owners[declared.name]
        shape = [int(size) for size in declared.shape]
        if isinstance(owner, ArgumentOwner):
            expected = self._leaves[owner.position][1]
            if expected is not None and ANY not in expected[0]:
                example = torch.empty_strided(shape, expected[4], dtype=declared.dtype, device=declared.device)
                return example.requires_grad_(self._is_wanted(declared))
        return torch.empty(shape, dtype=declared.dtype, device=declared.device)

    def _name_of(self, tensor: Tensor) -> str:
        name = self._contents.name_of(tensor)
        assert name is not None, "an average that is not shown"
        return name

    # -- graphs

    def _nodes(self, module: fx.GraphModule) -> list[Any]:
        try:
            return module_as_data(module, self._contents.keep)
        except NotPlain as reason:
            raise self._not_held(reason) from reason

    def _conditions(self) -> fx.GraphModule:
        """The program as a module of its checks, each a truth value."""
        program = self._program
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(program.module.graph, copied)
        checks = [graph.call_function(torch.all, (copied[program.node(check.node)],)) for check in program.checks]
        graph.output(tuple(checks))
        return fx.GraphModule(program.module, graph)

    def _sampler(self, sites: Sequence[Site]) -> fx.GraphModule:
        """The guide as a module of the values of these sites, which draws what it draws until the last of them."""
        program = self._program
        values = [program.node(site.value) for site in sites if site.value is not None]
        depends = dependencies(program.module.graph)
        needed = ancestors(values, depends)
        last = max(position for position, node in enumerate(depends) if node in needed)
        drawn = (node for position, node in enumerate(depends) if position < last and is_random(node))
        needed |= ancestors(drawn, depends)
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in depends:
            if node in needed or node.op == "placeholder":
                copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(tuple(copied[value] for value in values))
        return fx.GraphModule(program.module, graph)

    def _read(self, guard: ValueGuard, inputs: list[Tensor]) -> dict[str, Any]:
        position = {declared.name: i for i, declared in enumerate(self._specialization.inputs)}
        positions = [position[name] for name in guard.inputs]
        return {
            "nodes": self._nodes(operators_of(guard.module, [inputs[i].detach() for i in positions])),
            "inputs": positions,
            "value": self._contents.keep(guard.value),
            "source": "" if guard.source is None else str(guard.source),
        }

    def _sizes(self, sizes: SymbolicSizes) -> dict[str, Any]:
        """What is asked of the sizes that differ from call to call. Those of tensors that no call brings stay."""
        try:
            return {
                "axes": [
                    [where, dim] if isinstance(where, int) else tensor_at(where, ()).shape[dim]
                    for where, dim in sizes.axes
                ],
                "conditions": [
                    [formula_as_data(guard.expr, sizes.symbols), text]
                    for guard, text in zip(sizes.environment.guards, sizes.conditions(), strict=True)
                ],
                "strides": [
                    [where, [_formula(stride, sizes.symbols) for stride in example.stride()]]
                    for where, example in sizes.examples.items()
                    if isinstance(where, int)
                ],
            }
        except ValueError as error:
            raise SavedProgramError(
                f"of sizes that differ from call to call the program asks what no file holds: {error}",
                remedy="save a loss module that was called with sizes of one kind",
            ) from error


_OTHER_BRANCH = "it takes another branch on a sample than the program in the file, which assumes that "

_REMEDY = "use a distribution that sgc traces, or operators of torch's own; or keep loss_module.state_dict()"


def _undone(differentiated: Any) -> fx.GraphModule:
    """A module that writes nothing where the call was not valid."""
    module: fx.GraphModule = differentiated.module
    return rolled_back_if_invalid(module) if differentiated.validates else module


def _formula(size: Any, symbols: tuple[Any, ...]) -> Any:
    return formula_as_data(size.node.expr, symbols) if isinstance(size, torch.SymInt) else int(size)
