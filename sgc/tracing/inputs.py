"""The declared inputs of a program: the tensors among its arguments, and every other tensor that it met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx
from torch._guards import detect_fake_mode

from sgc.errors import CaptureError
from sgc.graph.meta_keys import ABOUT
from sgc.graph.program import Input, InputKind
from sgc.graph.sizes import shape_of
from sgc.tracing import tracer
from sgc.tracing.python.tensor_layouts import check_layout
from sgc.tracing.state.moving_inputs import MovingInputs
from sgc.tracing.state.owners import ArgumentOwner, FixedOwner, Owner, Ownership, is_trainable
from sgc.tracing.values.slices import is_external


@dataclass
class Inputs:
    """The inputs, the owner of each by its name, and the placeholders that stand for what were attributes."""

    declared: list[Input] = field(default_factory=list)
    owners: dict[str, Owner] = field(default_factory=dict)
    placeholders: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def add(self, name: str, kind: InputKind, node: fx.Node, tensor: Tensor, owner: Owner) -> None:
        """Declare that a placeholder stands for the owner's tensor, which is this one now."""
        check_layout(name, tensor)
        ABOUT.put(node, name)
        shape, trainable = shape_of(tensor.shape), is_trainable(tensor)
        self.declared.append(Input(name, kind, node.name, shape, tensor.dtype, tensor.device, trainable))
        self.owners[name] = owner

    def name_of(self, node: fx.Node) -> str:
        """The name of the input that a node stands for, or stood for as an attribute."""
        return str(ABOUT.of(self.placeholders.get(node, node)))

    def unused(self, name: str) -> str:
        """The name, with a number where it is taken."""
        candidate, number = name, 1
        while candidate in self.owners:
            candidate, number = f"{name}_{number}", number + 1
        return candidate


def declare_inputs(
    module: fx.GraphModule,
    positions: Sequence[int],
    names: Sequence[str],
    ownership: Ownership,
    guarded: set[fx.Node],
    moving: MovingInputs,
) -> Inputs:
    """Make an input of every tensor that the program met; literals of its own stay constants, unless guarded.

    :param positions: where the tensors that the placeholders stand for are among the leaves of the arguments.
    :param names: of these leaves.
    :param moving: what the other placeholders stand for, and where tensors are that nobody owns.
    :raises CaptureError: for what no input can be.
    """
    graph = module.graph
    inputs = Inputs()
    own: list[tuple[str, Owner]] = [(names[position], ArgumentOwner(position)) for position in positions]
    for node, (name, owner) in zip(graph.find_nodes(op="placeholder"), [*own, *moving.owners()], strict=True):
        inputs.add(inputs.unused(name), InputKind.DATA, node, node.meta["val"], owner)
    fakes = detect_fake_mode([node.meta["val"] for node in graph.nodes if "val" in node.meta])
    first = next(node for node in graph.nodes if node.op != "placeholder")
    placeholders: dict[int, fx.Node] = {}
    for node in graph.find_nodes(op="get_attr"):
        if not is_external(node) and node not in guarded:
            continue
        tensor = _held(module, node)
        placeholder = placeholders.get(id(tensor))
        if placeholder is None:
            named = moving.owner_of(tensor) or (f"closed_over_{len(placeholders)}", FixedOwner(tensor))
            name, kind, owner = _owned(tensor, ownership, *named)
            name = inputs.unused(name)
            with graph.inserting_before(first):
                placeholder = graph.placeholder(_identifier(name))
            placeholder.target = placeholder.name  # which no other has, and which is no keyword of Python
            placeholder.meta["val"] = fakes.from_tensor(tensor, static_shapes=True) if fakes else tensor
            inputs.add(name, kind, placeholder, tensor, owner)
            placeholders[id(tensor)] = placeholder
        node.replace_all_uses_with(placeholder)
        inputs.placeholders[node] = placeholder
    for node in inputs.placeholders:
        graph.erase_node(node)
    return inputs


def _identifier(name: str) -> str:
    """What an input is called in the Python that fx writes, whose methods have a ``self``."""
    text = "".join(c if c.isalnum() else "_" for c in name)
    return f"{text}_" if text == "self" else text


def _held(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that an attribute of the graph holds.

    :raises CaptureError: if it is none that a later call could fetch.
    """
    held = getattr(module, str(node.target))
    if not isinstance(held, Tensor):
        raise CaptureError(f"an operator is given a {type(held).__name__}, which no graph holds")
    if tracer.is_fake(held):
        raise CaptureError(
            "a tensor was computed where the capture cannot follow: in a derivative of a module "
            "(torch.autograd.grad, torch.autograd.functional), in a torch.func transform, or on another thread",
            remedy="write the derivative or the batched computation out with ordinary tensor operations",
        )
    return held


def _owned(tensor: Tensor, ownership: Ownership, name: str, owner: Owner) -> tuple[str, InputKind, Owner]:
    """The name, kind and owner of a tensor; the given ones where it is merely closed over."""
    owned = ownership.of(tensor)
    if owned is not None:
        return owned.name, InputKind.BUFFER if owned.is_buffer else InputKind.PARAMETER, owned.owner
    is_parameter = tensor.requires_grad and tensor.is_leaf
    return name, InputKind.PARAMETER if is_parameter else InputKind.CONSTANT, owner
