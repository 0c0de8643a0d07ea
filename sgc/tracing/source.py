"""Finds the user's own line: the innermost stack frame that belongs neither to a library nor to sgc."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import itertools
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType

import networkx
import pyro.nn.module
import pyro.params.param_store
import torch
from torch.utils import checkpoint

from sgc.errors import SourceLine

_SGC = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple(os.path.dirname(os.path.abspath(str(m.__file__))) + os.sep for m in (torch, pyro, networkx))
_TORCH, _PYRO, _ = _LIBRARIES
_PARAMETER_STORES = frozenset((str(pyro.params.param_store.__file__), str(pyro.nn.module.__file__)))
_TORCH_TRACING = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "fx") + os.sep
_TRACING = tuple(
    os.path.join(_TORCH, part) for part in ("fx", "_subclasses", "_prims", "_refs", "_decomp", "_meta_reg")
)
_STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def belongs_to_user(frame: FrameType) -> bool:
    """Whether the code is neither sgc's nor of one of the libraries, Python's own among them."""
    file = frame.f_code.co_filename
    if file == "<string>":  # python -c, or what torch's tracer writes
        return frame.f_globals.get("__name__") == "__main__"
    return _is_users(file)


@functools.cache
def _is_users(file: str) -> bool:
    if file.startswith((*_LIBRARIES, _SGC, "<frozen")):
        return False
    return not file.startswith(_STANDARD) or f"{os.sep}site-packages{os.sep}" in file


def is_installed(frame: FrameType) -> bool:
    """Whether the code is of an installed package."""
    return is_installed_code(frame.f_code)


def is_installed_code(code: CodeType) -> bool:
    """Whether code is of an installed package."""
    return f"{os.sep}site-packages{os.sep}" in code.co_filename


def is_asked_by_program(frame: FrameType | None) -> bool:
    """Whether the user's code leads to a frame, by way of libraries, and not Python's own looks at source files."""
    while frame is not None and not belongs_to_user(frame):
        if is_of_sgc(frame) or str(frame.f_globals.get("__name__")).partition(".")[0] in _SOURCE_READERS:
            return False
        frame = frame.f_back
    return frame is not None


_SOURCE_READERS = frozenset(("importlib", "linecache", "tokenize", "inspect", "traceback", "warnings", "zipimport"))


def is_of_sgc(frame: FrameType) -> bool:
    """Whether the code is sgc's own."""
    return frame.f_code.co_filename.startswith(_SGC)


def is_tracing(frame: FrameType) -> bool:
    """Whether the code is of torch's tracing, which computes what a traced operator would give."""
    return frame.f_code.co_filename.startswith(_TRACING)


def is_parameter_store(frame: FrameType | None) -> bool:
    """Whether the code is Pyro's that asks for the first value of a parameter."""
    return frame is not None and frame.f_code.co_filename in _PARAMETER_STORES


def current_line() -> SourceLine | None:
    """The user's line being executed; inside a library's own model (an autoguide), that library's line."""
    frame = sys._getframe(1)
    library: SourceLine | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        if belongs_to_user(frame):
            return SourceLine(file, frame.f_lineno, frame.f_code.co_name)
        if file.startswith(_SGC) and library is not None and not file.startswith(os.path.dirname(__file__)):
            return library
        if library is None and f"{os.sep}autoguide{os.sep}" in file:
            library = SourceLine(file, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return library


def warn(message: str, category: type[Warning], line: SourceLine | None = None) -> None:
    """Give a warning at the user's own line: the given one, or that being executed."""
    line = line or current_line()
    if line is None:
        warnings.warn(message, category, stacklevel=3)
    else:
        warnings.warn_explicit(message, category, line.file, line.line)


def is_assertion() -> bool:
    """Whether the nearest frame outside of sgc and torch's tracing is executing ``assert condition``."""
    frame = _program_frame()
    if frame is None:
        return False
    code = [i for i in dis.get_instructions(frame.f_code) if i.opname != "EXTENDED_ARG"]
    preceding = [i for i in code if i.offset < frame.f_lasti]
    # pytest rewrites the assertions of test files, with variables of its own.
    if preceding and str(preceding[-1].argval).startswith("@py_assert"):
        return True
    following = (i for i in code if i.offset >= frame.f_lasti)
    names = [instruction.opname for instruction in itertools.islice(following, 8)]
    # The compiler writes "assert x" as: jump over the raise if x is true, else load AssertionError.
    jump = next((i for i, name in enumerate(names) if name.startswith("POP_JUMP")), None)
    return jump is not None and "IF_TRUE" in names[jump] and names[jump + 1 : jump + 2] == ["LOAD_ASSERTION_ERROR"]


@dataclass(frozen=True)
class Refusal:
    """A branch that only raises or only warns: the answer that passes it, and whether the other one raises."""

    passes: bool
    raises: bool


def library_refusal() -> Refusal | None:
    """The branch that the nearest frame outside of sgc and torch's tracing is at, if it is one of torch's or Pyro's."""
    frame = _program_frame()
    if frame is None or not frame.f_code.co_filename.startswith(_LIBRARIES):
        return None
    return _refusals(frame.f_code).get(frame.f_lineno)


@functools.cache
def _refusals(code: CodeType) -> dict[int, Refusal]:
    """The branches of a function that are a :class:`Refusal`, by the lines of their conditions."""
    refusals: dict[int, Refusal] = {}
    for branch in ast.walk(parsed(code)):
        if isinstance(branch, ast.If) and not branch.orelse:
            raises = isinstance(branch.body[-1], ast.Raise)
            if raises or all(_only_warns(statement) for statement in branch.body):
                for operand, passes in _deciding(branch.test, False):
                    lines_of_it = range(operand.lineno, (operand.end_lineno or operand.lineno) + 1)
                    refusals |= dict.fromkeys(lines_of_it, Refusal(passes, raises))
    return refusals


def _only_warns(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assert) or ast.unparse(statement).startswith("warnings.warn")


def _deciding(test: ast.expr, passes: bool) -> Iterator[tuple[ast.expr, bool]]:
    """The parts of a condition that decide it, each with the answer that ``passes`` it.

    Of ``a and b`` only the last does, if it is to be false: of a tensor before it nothing can be asked.
    """
    if isinstance(test, ast.UnaryOp):
        yield from _deciding(test.operand, not passes)
    elif isinstance(test, ast.BoolOp):
        each = isinstance(test.op, ast.And) is passes
        for operand in test.values if each else test.values[-1:]:
            yield from _deciding(operand, passes)
    else:
        yield test, passes


def parsed(code: CodeType) -> ast.AST:
    """The syntax of a function, with the numbers of its lines in the file; empty where the source cannot be read."""
    try:
        lines, first = inspect.getsourcelines(code)
        return ast.increment_lineno(ast.parse(textwrap.dedent("".join(lines))), first - 1)
    except (OSError, SyntaxError):  # typed into Python; or a lambda within brackets
        return ast.Module([], [])


def is_in_library() -> bool:
    """Whether that frame is torch's or Pyro's own."""
    frame = _program_frame()
    return frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES)


def is_pyro() -> bool:
    """Whether that frame is Pyro's own."""
    frame = _program_frame()
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _SGC)):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_PYRO)


def is_of_pyro(frame: FrameType) -> bool:
    """Whether a frame is Pyro's own."""
    return frame.f_code.co_filename.startswith(_PYRO)


def is_checkpoint() -> bool:
    """Whether that frame is of torch's checkpoints."""
    frame = _program_frame()
    return frame is not None and frame.f_code.co_filename == checkpoint.__file__


def is_formatting() -> bool:
    """Whether that frame is executing ``text % values``."""
    frame = _program_frame()
    return frame is not None and any(
        instruction.offset == frame.f_lasti and instruction.opname == "BINARY_OP" and instruction.argrepr == "%"
        for instruction in dis.get_instructions(frame.f_code)
    )


def is_message_of_error() -> bool:
    """Whether the code that asks for a text is at a statement that makes the message of an error."""
    frame = frame_of_text()
    return frame is not None and frame.f_lineno in _lines_of_messages(frame.f_code)


def frame_of_text() -> FrameType | None:
    """The frame of the code that asks a tensor for a text."""
    frame = _program_frame()
    while frame is not None and (is_of_sgc(frame) or frame.f_code.co_filename in _TEXT_MAKING):
        frame = frame.f_back
    return frame


_TEXT_MAKING = frozenset((torch._tensor.__file__, torch.overrides.__file__))
"""torch's files by which a tensor is asked for a text."""


@functools.cache
def _lines_of_messages(code: CodeType) -> frozenset[int]:
    """The lines of a function's statements that give a text a name by which assertions and errors alone use it."""
    nodes = list(ast.walk(parsed(code)))
    errors = [node.msg for node in nodes if isinstance(node, ast.Assert)]
    errors += [node.exc for node in nodes if isinstance(node, ast.Raise)]
    in_errors = {id(part) for error in errors if error is not None for part in ast.walk(error)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    lines: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            uses = [n for n in names if n.id == node.targets[0].id and not isinstance(n.ctx, ast.Store)]
            if uses and all(id(use) in in_errors for use in uses):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(lines)


def _program_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_SGC, _TORCH_TRACING)):
        frame = frame.f_back
    return frame


def line_of(traceback: TracebackType | None) -> SourceLine | None:
    """The user's innermost line in a traceback."""
    line: SourceLine | None = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if belongs_to_user(traceback.tb_frame):
            line = SourceLine(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return line
