"""Which torch functions a captured program does not simply call: a table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.tracing.python.deepcopy import deep_copy
from sgc.tracing.python.nested_lists import stacked
from sgc.tracing.python.packed_sequences import OF_PACKED, on_packed
from sgc.tracing.python.printed_texts import is_printed
from sgc.tracing.python.refusals import refuse_traced
from sgc.tracing.python.texts import is_shown, shown
from sgc.tracing.source import is_assertion, is_formatting, is_message_of_error, library_refusal
from sgc.tracing.values.error_conditions import CHECKING, condition_of
from sgc.tracing.values.indices import get_item, set_item
from sgc.tracing.values.reads import READS, UNKNOWN, Reads


@dataclass(frozen=True)
class Call:
    """A call of a torch function."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, reads: Reads) -> Any:
        """Make it.

        :raises DataDependenceError: if it needs a value that is not known.
        """
        try:
            return self.func(*self.args, **self.kwargs)
        except UNKNOWN as error:
            raise reads.unknown(self.name, (self.args, self.kwargs)) from error


class AnsweredFunctions(TorchFunctionMode):
    """Around a captured run: answers a call by the first of the :data:`RULES` that applies; makes it if none does."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = Call(func, getattr(func, "__name__", ""), args, kwargs or {})
        refuse_traced(func, args, call.kwargs)
        for rule in RULES:
            if (call.name in rule.functions or func in rule.functions) and rule.matches(self._reads, call):
                result = rule.handle(self._reads, call)
                if result is not NotImplemented:
                    return result
        return call.run(self._reads)


# -- what the rules do


def _is_name_of_site(reads: Reads, call: Call) -> bool:
    return bool(call.args) and id(call.args[0]) in reads.names


def _name_of_site(reads: Reads, call: Call) -> str:
    return reads.names[id(call.args[0])][1]


def _assertion(reads: Reads, call: Call) -> bool:
    _assert(reads, call)
    return True


def _assert(reads: Reads, call: Call) -> None:
    assert reads.check is not None
    reads.check(call.args[0], "an assertion of the program")


def _branch_of_library(reads: Reads, call: Call) -> Any:
    refusal = library_refusal()
    if refusal is None:
        return NotImplemented
    if refusal.raises:
        assert reads.check is not None
        condition = call.args[0] if refusal.passes else call.args[0].logical_not()
        reads.check(condition, "a condition of the library")
    return refusal.passes


def _checked(reads: Reads, call: Call) -> Any:
    condition = condition_of(call.func, call.args, call.kwargs)
    if condition is not None and reads.check is not None:
        reads.check(condition, f"what {call.name} is given")
    return NotImplemented


def _read(reads: Reads, call: Call) -> Any:
    return reads.answer(call.func, call.args, call.kwargs)


def _broadcast(*args: Any) -> tuple[Tensor, ...]:
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    return tuple(tensor if tensor.shape == shape else tensor.expand(shape) for tensor in tensors)


def _stacked(data: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Any:
    if not isinstance(data, (list, tuple)) or not _any_tensor(data):
        return NotImplemented
    # The numbers are read one by one, so the result is on no device but the default one, unless asked for.
    device = device or torch.get_default_device()
    return stacked(data, device).detach().to(device, dtype)


def _new_stacked(
    tensor: Tensor, data: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any
) -> Any:
    if not _any_tensor(data):
        return NotImplemented
    device = device or tensor.device
    return stacked(data, device).detach().to(device, dtype or tensor.dtype)


def _with_numbers(reads: Reads, call: Call) -> Any:
    """The call with numbers in the place of tensors, but for the tensor that it is about and where its result goes."""
    about = 1 if call.func in _OF_TENSOR else 0
    given = call.args[about:], {name: value for name, value in call.kwargs.items() if name not in _KEPT}
    args, kwargs = tree_map_only(Tensor, reads.numbers, given)
    return replace(call, args=(*call.args[:about], *args), kwargs=call.kwargs | kwargs).run(reads)


def _without_history(reads: Reads, call: Call) -> Any:
    return tree_map_only(Tensor, Tensor.detach, call.run(reads))


def _is_last_derivative(reads: Reads, call: Call) -> bool:
    """Whether ``create_graph``, the fifth argument of ``torch.autograd.grad``, is false."""
    return not (call.args[4] if len(call.args) > 4 else call.kwargs.get("create_graph"))


def _is_of_tensor(reads: Reads, call: Call) -> bool:
    return isinstance(call.args[0], Tensor)


def _any_tensor(arguments: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(arguments))


def _with_given(function: Callable[..., Any]) -> Callable[[Reads, Call], Any]:
    """A function of the call's own arguments, as a rule has it."""
    return lambda reads, call: function(*call.args, **call.kwargs)


_TEXTS = ("__format__", "__repr__")
_TENSOR: Any = Tensor  # whose attributes are descriptors
_OF_SIZES = frozenset((torch.arange, torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn))
_OF_TENSOR = frozenset(
    (
        *(torch.narrow, Tensor.narrow, torch.tensor_split, Tensor.tensor_split, torch.split, Tensor.split),
        *(torch.chunk, Tensor.chunk, torch.nn.functional.pad),
    )
)
_KEPT = ("input", "tensor", "out")


@dataclass(frozen=True)
class Rule:
    """``handle`` answers a call of one of the functions, given by name or themselves, where ``matches`` holds.

    Where it gives NotImplemented the rules after it are asked.
    """

    functions: Iterable[Any]
    handle: Callable[[Reads, Call], Any]
    matches: Callable[[Reads, Call], bool] = lambda reads, call: True


RULES = (
    # What stands for an element of a random subsample is, in the name of a site, its position in the subsample.
    Rule(_TEXTS, _name_of_site, _is_name_of_site),
    Rule(
        ("__int__", "__index__"),
        lambda reads, call: int(_name_of_site(reads, call)),
        lambda reads, call: _is_name_of_site(reads, call) and is_formatting(),
    ),
    # A text for people's eyes reads nothing; any other is a read, below.
    Rule(("__repr__",), lambda reads, call: shown(call.args[0]), lambda reads, call: is_shown()),
    Rule(_TEXTS, lambda reads, call: shown(call.args[0]), lambda reads, call: is_printed()),
    # So does one that is the message of an error alone: Pyro runs where an error is raised, and makes it again.
    Rule(_TEXTS, lambda reads, call: shown(call.args[0]), lambda reads, call: is_message_of_error()),
    # Python copies a tensor through its memory, which a traced one lacks.
    Rule((Tensor.__deepcopy__,), _with_given(deep_copy)),
    # Where one branch only raises, the other is taken and the condition is checked at each call.
    Rule(("__bool__",), _assertion, lambda reads, call: is_assertion()),
    Rule(("__bool__",), _branch_of_library, lambda reads, call: not reads.is_refusing),
    Rule((torch._assert,), _assert, lambda reads, call: isinstance(call.args[0], Tensor)),
    # What a function checks in its own code is lost where a fake tensor or Inductor computes it.
    Rule(CHECKING, _checked),
    # Every other value that Python is given is a guard.
    Rule(READS, _read, lambda reads, call: _any_tensor((call.args, call.kwargs))),
    # ``x.data`` has the values of each run, and no history.
    Rule((_TENSOR.data.__get__,), lambda reads, call: call.args[0].detach()),
    # As one operator its results would all depend on all of its arguments.
    Rule((torch.broadcast_tensors,), _with_given(_broadcast)),
    # Nested lists are read one number at a time; stacked, their tensors keep the values of each run.
    Rule((torch.tensor, torch.as_tensor), _with_given(_stacked)),
    Rule((Tensor.new_tensor,), _with_given(_new_stacked)),
    # Sizes, and positions to cut at, decide shapes.
    Rule(_OF_SIZES | _OF_TENSOR, _with_numbers),
    # Masks and 0-d tensors in an index are read by torch.
    Rule(("__getitem__",), lambda reads, call: get_item(reads, call.func, *call.args), _is_of_tensor),
    Rule(("__setitem__",), lambda reads, call: set_item(reads, call.func, *call.args), _is_of_tensor),
    # The steps of packed sequences have as many rows as there are sequences that long.
    Rule(OF_PACKED, lambda reads, call: on_packed(call.name, call.args, reads.numbers)),
    # Traced above autograd, the operators of a derivative would be differentiated again.
    Rule((torch.autograd.grad,), _without_history, _is_last_derivative),
)
"""In the order in which they are asked."""
