"""Elementwise arithmetic as C++ loops.

The operators are few, those of which optimizers are made; each is written as ATen computes it on the CPU, operand by
operand in the type of the result. Nothing is contracted (``a * b + c`` rounds twice), as in Inductor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.rewriting import literal, tensor_of, value_of

_aten = torch.ops.aten

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "bool",
}
"""The types of elements that a kernel can hold."""

Operator = Callable[..., str]
"""Takes a node's arguments, each as C++ that has the type in which it computes, and gives C++."""


def _lerp(a: str, b: str, weight: str) -> str:
    # From the nearer end, as ATen does it.
    return f"std::abs({weight}) < 0.5 ? {a} + {weight} * ({b} - {a}) : {b} - ({b} - {a}) * (1 - {weight})"


def _scaled(factor: Any, x: str) -> str:
    return x if factor == 1 else f"{factor} * {x}"


_ARITHMETIC: dict[Any, Operator] = {
    _aten.add.Tensor: lambda a, b, alpha=1: f"{a} + {_scaled(alpha, b)}",
    _aten.sub.Tensor: lambda a, b, alpha=1: f"{a} - {_scaled(alpha, b)}",
    _aten.rsub.Scalar: lambda a, b, alpha=1: f"{b} - {_scaled(alpha, a)}",
    _aten.mul.Tensor: lambda a, b: f"{a} * {b}",
    _aten.div.Tensor: lambda a, b: f"{a} / {b}",
    _aten.neg.default: lambda a: f"-{a}",
    _aten.abs.default: lambda a: f"std::abs({a})",
    _aten.sign.default: lambda a: f"(0 < {a}) - ({a} < 0)",
    _aten.reciprocal.default: lambda a: f"1 / {a}",
    _aten.sqrt.default: lambda a: f"std::sqrt({a})",
    _aten.rsqrt.default: lambda a: f"1 / std::sqrt({a})",
    _aten.exp.default: lambda a: f"std::exp({a})",
    _aten.log.default: lambda a: f"std::log({a})",
    _aten.pow.Scalar: lambda a, b: f"std::pow({a}, {b})",
    _aten.addcmul.default: lambda a, b, c, value=1: f"{a} + {_scaled(value, b)} * {c}",
    _aten.addcdiv.default: lambda a, b, c, value=1: f"{a} + {_scaled(value, b)} / {c}",
    _aten.lerp.Scalar: _lerp,
    _aten.maximum.default: lambda a, b: f"{a} > {b} || {a} != {a} ? {a} : {b}",
    _aten.minimum.default: lambda a, b: f"{a} < {b} || {a} != {a} ? {a} : {b}",
    _aten._to_copy.default: lambda a: a,
    _aten.clone.default: lambda a: a,
    _aten.copy.default: lambda a, b: b,
}
"""Operators whose operands are converted to the type of the result first."""

_COMPARISONS: dict[Any, Operator] = {
    getattr(getattr(_aten, name), overload): (lambda a, b, sign=sign: f"{a} {sign} {b}")
    for name, sign in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))
    for overload in ("Scalar", "Tensor")
}
_COMPARISONS |= {_aten.isnan.default: lambda a: f"{a} != {a}"}
"""Operators that give bool, of operands in the type that these have in common."""

_OF_BOOLS: dict[Any, Operator] = {
    _aten.logical_not.default: lambda a: f"!{a}",
    _aten.bitwise_not.default: lambda a: f"!{a}",
    _aten.logical_and.default: lambda a, b: f"{a} && {b}",
    _aten.bitwise_and.Tensor: lambda a, b: f"{a} && {b}",
    _aten.logical_or.default: lambda a, b: f"{a} || {b}",
    _aten.bitwise_or.Tensor: lambda a, b: f"{a} || {b}",
}

_LAYOUT = {"memory_format", "dtype", "device", "layout", "pin_memory", "non_blocking"}
"""Keyword arguments that say how a tensor lies in memory, or what its type is, which the node's value says too."""


def is_elementwise(node: fx.Node) -> bool:
    """Whether a node can be part of a kernel, as far as its operator and the types of its values go."""
    held = [tensor_of(operand) for operand in (node, *node.all_input_nodes)]
    if any(value is None or value.dtype not in TYPES or value.device.type != "cpu" for value in held):
        return False
    if node.target is _aten.full.default:
        return isinstance(node.args[1], (int, float))
    if node.target in _OF_BOOLS:
        return all(value is not None and value.dtype is torch.bool for value in held)
    if node.target is _aten.clamp.default or node.target is _aten.pow.Tensor_Scalar:
        return all(not isinstance(argument, fx.Node) for argument in node.args[1:])
    known = node.target in _ARITHMETIC or node.target in _COMPARISONS or node.target is _aten.where.self
    return known and node.kwargs.keys() <= {"alpha", "value", *_LAYOUT}


def literal_number(node: fx.Node) -> float | None:
    """The number that a node is known to hold."""
    tensor = literal(node)
    return tensor.item() if tensor is not None and tensor.dim() == 0 else None


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads, and writes the value of ``written`` into, if there is one."""

    node: fx.Node
    whole: bool  # it has the shape of the loop; else it is one number
    written: fx.Node | None


def function(nodes: Sequence[fx.Node], operands: Sequence[Operand], whole: set[fx.Node]) -> str:
    """The body of a C++ function ``(void* const* p, int64_t begin, int64_t end, bool finish)``.

    It computes the elements from ``begin`` to ``end``. Numbers are read and computed in every call, and written in that
    with ``finish``; when nothing that they depend on has changed, they are those of the call before, for ``pow`` takes
    longer than the rest of a small loop.

    :param nodes: what it computes, in topological order.
    :param operands: what it reads and writes; ``p`` points to their elements.
    :param whole: the nodes that have the shape of the loop.
    """
    names: dict[fx.Node, str] = {}
    before, loop, after = [], [], []
    read = []
    for position, operand in enumerate(operands):
        kind, x = _type(operand.node), f"x{position}"
        constant = "" if operand.written else "const "
        if operand.whole:
            before.append(f"{constant}{kind}* __restrict p{position} = static_cast<{constant}{kind}*>(p[{position}]);")
            loop.append(f"const {kind} {x} = p{position}[i];")
        else:
            before.append(f"const {kind} {x} = *static_cast<const {kind}*>(p[{position}]);")
            read.append((kind, x))
        names[operand.node] = x
    numbers = []
    for count, node in enumerate(nodes):
        text = _expression(node, names)
        names[node] = f"y{count}"
        if node in whole:
            loop.append(f"const {_type(node)} y{count} = {text};")
        else:
            numbers.append((_type(node), f"y{count}", text))
    for position, operand in enumerate(operands):
        if operand.written is not None:
            value = _cast(names[operand.written], operand.written, operand.node)
            if operand.whole:
                loop.append(f"p{position}[i] = {value};")
            else:
                after.append(f"*static_cast<{_type(operand.node)}*>(p[{position}]) = {value};")
    body = [*before, *_numbers(read, numbers)]
    if loop:
        body += ["for (int64_t i = begin; i < end; ++i) {", *("    " + line for line in loop), "}"]
    if after:
        body += ["if (finish) {", *("    " + line for line in after), "}"]
    return "\n".join("    " + line for line in body)


def _numbers(read: Sequence[tuple[str, str]], numbers: Sequence[tuple[str, str, str]]) -> list[str]:
    if not numbers:
        return []
    fields = [f"{kind} {x};" for kind, x in read] + [f"{kind} {y};" for kind, y, _ in numbers]
    # To the bit: 0 and -0 are two numbers, and NaN is one.
    same = " && ".join(["known.made", *(f"!std::memcmp(&known.{x}, &{x}, sizeof {x})" for _, x in read)])
    return [
        f"struct Numbers {{ bool made = false; {' '.join(fields)} }};",
        "static thread_local Numbers known;",
        f"if (!({same})) {{",
        *(f"    const {kind} {y} = {text};" for kind, y, text in numbers),
        *(f"    known.{x} = {x};" for _, x in read),
        *(f"    known.{y} = {y};" for _, y, _ in numbers),
        "    known.made = true;",
        "}",
        *(f"const {kind} {y} = known.{y};" for kind, y, _ in numbers),
    ]


def _type(node: fx.Node) -> str:
    return TYPES[value_of(node).dtype]


def _cast(text: str, node: fx.Node, like: fx.Node) -> str:
    return text if _type(node) == _type(like) else f"static_cast<{_type(like)}>({text})"


def _expression(node: fx.Node, names: dict[fx.Node, str]) -> str:
    own = value_of(node).dtype
    kind = own
    if node.target in _COMPARISONS:
        held: list[Any] = [value_of(a) if isinstance(a, fx.Node) else a for a in node.args]
        kind = torch.result_type(*held) if len(held) == 2 else held[0].dtype

    def text(argument: Any, kind: torch.dtype = kind) -> str:
        if not isinstance(argument, fx.Node):
            return _number(argument, kind)
        known = literal_number(argument)
        if known is not None:
            return _number(known, kind)
        return names[argument] if value_of(argument).dtype is kind else f"{TYPES[kind]}({names[argument]})"

    if node.target is _aten.full.default:
        return _number(node.args[1], own)
    if node.target is _aten.where.self:
        condition, one, other = node.args
        return f"{text(condition, torch.bool)} ? {text(one)} : {text(other)}"
    if node.target is _aten.clamp.default:
        clamped = text(node.args[0])
        for bound, sign in zip(node.args[1:], "<>", strict=False):
            if bound is not None:
                clamped = f"({clamped} {sign} {text(bound)} ? {text(bound)} : {clamped})"
        return clamped
    if node.target is _aten.pow.Tensor_Scalar:
        return _power(text(node.args[0]), node.args[1], kind)
    table = next(table for table in (_ARITHMETIC, _COMPARISONS, _OF_BOOLS) if node.target in table)
    options = {key: text(value) for key, value in node.kwargs.items() if key not in _LAYOUT and value != 1}
    return table[node.target](*map(text, node.args), **options)


def _power(base: str, exponent: Any, kind: torch.dtype) -> str:
    simple = {0.5: f"std::sqrt({base})", 2: f"{base} * {base}", 3: f"{base} * {base} * {base}"}
    return simple.get(exponent) or f"std::pow({base}, {_number(exponent, kind)})"


def _number(value: Any, kind: torch.dtype) -> str:
    """A literal, to the last bit."""
    name = TYPES[kind]
    if isinstance(value, float) and not math.isfinite(value):
        limit = "quiet_NaN" if math.isnan(value) else "infinity"
        return f"{name}({'-' if value < 0 else ''}std::numeric_limits<double>::{limit}())"
    text = float(value).hex() if kind.is_floating_point else f"{int(value)}LL"
    return f"{name}({text})"
