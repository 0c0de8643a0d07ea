"""The TorchScript backend: an emitted module, as far as torch's tracer of TorchScript can record it.

What it cannot record, and what TorchScript would drop because nothing uses it, is written in another way here.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends.protocol import Backend
from sgc.emit.fx.rewriting import call, copy_of, replace, results_of, tensor_of, value_of
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.fold_constants import FULL
from sgc.emit.rewrites.optimize import Optimized, optimize
from sgc.emit.rewrites.singular_matrices import failures_are_nan
from sgc.errors import BackendError
from sgc.graph.effects import is_random

_aten = torch.ops.aten
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class TorchScript(Backend):
    """Runs the rewritten module by TorchScript's interpreter, which fuses nothing here."""

    name = "torchscript"
    takes_any_size = False

    def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
        return optimize(module, examples, rng="torch", skip=("lower_elementary",))  # nothing is fused

    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        return compile_torchscript(optimized.module, examples)

    def draws_as_torch(self, rng: Rng) -> bool:
        return True


def compile_torchscript(module: fx.GraphModule, examples: Sequence[Tensor]) -> Runner:
    """A callable that computes what ``module`` computes on tensors like ``examples``.

    :param module: a graph of aten operators that returns a list.
    :raises BackendError: if the module computes with sizes or numbers that depend on data.
    """
    if any(isinstance(node.meta.get("val"), _SYMBOLS) for node in module.graph.nodes):
        raise BackendError(
            "the program computes with a size or number that depends on data; TorchScript would take it for constant",
            remedy='use backend="inductor" or "eager", or write it without: torch.where for x[mask], expand for full',
        )
    copies = [example.clone() for example in examples]
    module = copy_of(module)
    failures_are_nan(module, validates=False)
    wanted = len(results_of(module))
    _return_effects(module)
    for node in list(module.graph.nodes):
        if node.target in _OF_ROWS:
            _lay_out_operands(node)
        if node.target in _FILLS:
            _fill_by_copy(node)
        elif _takes_booleans(node):
            _call_in_script(module, node)
    for node in module.graph.find_nodes(op="call_function", target=FULL):
        if isinstance(node.args[1], bool) and node.kwargs["dtype"] is torch.bool:
            node.update_arg(1, int(node.args[1]))  # TorchScript's numbers are no bools
    module.recompile()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript at each use; the documentation says so once
        traced = torch.jit.trace(_Tuple(module), tuple(copies), check_trace=False)
    return _Run(traced, wanted, list(module.children()))


@dataclass(frozen=True)
class _Run:
    """Calls what was traced for its first results; the functions that it calls live as long as ``scripts``."""

    traced: Runner
    wanted: int
    scripts: Sequence[torch.nn.Module]

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        try:
            return self.traced(*inputs)[: self.wanted]
        except RuntimeError as error:
            raise _as_torch_raises_it(error) from error


def _as_torch_raises_it(error: RuntimeError) -> RuntimeError:
    """The error of an operator by itself, without the interpreter's, which knows one type only."""
    text = (str(error).partition("\nRuntimeError: ")[2] or str(error)).removesuffix("\n")
    linear_algebra: Any = torch.linalg
    return linear_algebra.LinAlgError(text) if text.startswith("linalg.") else RuntimeError(text)


class _Tuple(torch.nn.Module):
    """TorchScript returns tuples, not lists."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.inner(*tensors))


# -- effects without users


def _return_effects(module: fx.GraphModule) -> None:
    """Return draws that nothing uses, and assertions, behind the results: TorchScript drops what is of no use."""
    graph = module.graph
    output = graph.output_node()
    kept = [shown for node in list(graph.nodes) if (shown := _shown(node)) is not None]
    output.args = ([*results_of(module), *kept],)


def _shown(node: fx.Node) -> fx.Node | None:
    """A tensor that is there if a node has run, None if a node needs none."""
    if node.target is _aten._assert_async.msg:
        condition = node.all_input_nodes[0]
        token = call(node, _aten.zeros_like.default, condition)
        held = call(node, _aten._functional_assert_async.msg, *node.args, token)
        node.graph.erase_node(node)
        return held
    if node.op != "call_function" or node.users or not is_random(node):
        return None
    if tensor_of(node) is not None:
        return node
    with node.graph.inserting_after(node):
        return node.graph.call_function(operator.getitem, (node, 0))


# -- fills

_FILLS = {_aten.fill.Tensor, _aten.fill.Scalar, _aten.zero.default}


def _fill_by_copy(node: fx.Node) -> None:
    """Copy what a tensor is filled with: the tracer records fills as operators that do not exist."""
    filled, *given = node.args
    number = given[0] if given else 0
    own = value_of(node)
    if not isinstance(number, fx.Node):
        number = call(node, FULL, [], number, dtype=own.dtype, device=own.device, pin_memory=False)
    replace(node, call(node, _aten.copy.default, filled, number))


# -- operators that look at strides

_OF_ROWS = {_aten.native_group_norm.default, _aten.native_group_norm_backward.default}
"""Operators that take no operand with other strides than torch's own functions give them; batching gives others."""


def _lay_out_operands(node: fx.Node) -> None:
    """Let the operands that stand for data lie in memory alike, row by row if they do not."""
    operands = [operand for operand in node.all_input_nodes if value_of(operand).dim() > 2]
    formats = (torch.contiguous_format, torch.channels_last)
    if any(all(value_of(o).is_contiguous(memory_format=f) for o in operands) for f in formats):
        return
    for operand in operands:
        if not value_of(operand).is_contiguous():
            rows = call(node, _aten.clone.default, operand, memory_format=torch.contiguous_format)
            node.replace_input_with(operand, rows)


# -- operators with lists of Booleans


def _takes_booleans(node: fx.Node) -> bool:
    """Whether an operator takes a list of Booleans, as many backwards do, which the tracer does not record."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and "List[bool]" in _types(target).values()


def _types(target: torch._ops.OpOverload) -> dict[str, str]:
    return {argument.name: str(argument.type) for argument in target._schema.arguments}


def _call_in_script(module: fx.GraphModule, node: fx.Node) -> None:
    """Let a function of TorchScript call an operator that gives several tensors: of it the call alone is recorded."""
    results = [user for user in node.users if user.target is operator.getitem]
    places = list(dict.fromkeys(cast("int", result.args[1]) for result in results))
    target = cast("torch._ops.OpOverload", node.target)
    types = _types(target)
    given = dict(zip(types, node.args, strict=False)) | node.kwargs
    shown = ", ".join(f"{name}={_written(value, types[name])}" for name, value in given.items())
    source = f"""
def run({", ".join(f"{operand.name}: Tensor" for operand in node.all_input_nodes)}):
    results = torch.ops.{target.namespace}.{target.overloadpacket.__name__}({shown})
    return [{", ".join(f"results[{place}]" for place in places)}]
"""
    module.add_submodule(node.name, _Script(source))
    with module.graph.inserting_before(node):
        called = module.graph.call_module(node.name, tuple(node.all_input_nodes))
    called.meta["val"] = [node.meta["val"][place] for place in places]
    for result in results:
        result.args = (called, places.index(cast("int", result.args[1])))
    module.graph.erase_node(node)


def _written(value: Any, kind: str) -> str:
    """An argument as it stands in a program of TorchScript."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_written(part, '') for part in value)}]" if value else f"torch.jit.annotate({kind}, [])"
    return f'float("{value}")' if isinstance(value, float) else repr(value)


class _Script(torch.nn.Module):
    """Calls the function ``run`` of a program of TorchScript."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.run = torch.jit.CompilationUnit(source).run

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return self.run(*tensors)
