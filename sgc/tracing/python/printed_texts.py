"""Texts that are made within a call of ``print`` and go nowhere else: ``print(f"z = {z}")``."""

from __future__ import annotations

import ast
import functools
from types import CodeType

from sgc.tracing.source import frame_of_text, parsed


def is_printed() -> bool:
    """Whether the code that asks for a text is at a statement that prints it."""
    frame = frame_of_text()
    if frame is None or frame.f_lineno not in _lines_that_print(frame.f_code):
        return False
    return "print" not in {**frame.f_globals, **frame.f_locals}


@functools.cache
def _lines_that_print(code: CodeType) -> frozenset[int]:
    """The lines of statements ``print(...)`` with nothing else on them, whose texts no other function is given."""
    syntax = parsed(code)
    expressions = [node for node in ast.walk(syntax) if isinstance(node, ast.expr)]
    lines: set[int] = set()
    for statement in ast.walk(syntax):
        if isinstance(statement, ast.Expr) and _prints_its_texts(statement.value):
            own, within = _lines(statement.value), set(map(id, ast.walk(statement)))
            if all(id(other) in within or own.isdisjoint(_lines(other)) for other in expressions):
                lines |= own
    return frozenset(lines)


def _prints_its_texts(call: ast.expr) -> bool:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "print":
        return False
    parts = [part for given in (*call.args, *call.keywords) for part in ast.walk(given)]
    if any(isinstance(part, (ast.NamedExpr, ast.Compare, ast.Lambda, ast.IfExp, ast.BoolOp)) for part in parts):
        return False  # a text would have a name, or be looked at
    others = [part for part in parts if isinstance(part, ast.Call)]
    return not any(_makes_text(part) for other in others for given in _given(other) for part in ast.walk(given))


def _given(call: ast.Call) -> list[ast.expr]:
    """What a call is given; the text of ``text.format(...)``, which it turns into another one, is not."""
    of_method = [] if _is_format(call) or not isinstance(call.func, ast.Attribute) else [call.func.value]
    return [*call.args, *(keyword.value for keyword in call.keywords), *of_method]


def _makes_text(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_format(node) or (isinstance(node.func, ast.Name) and node.func.id in ("str", "repr", "format"))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod))


def _is_format(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "format"


def _lines(node: ast.expr) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
