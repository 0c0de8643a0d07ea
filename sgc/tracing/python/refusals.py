"""What a program may not do to its tensors while it runs, because a compiled program would not do it again.

Each is refused before it happens, where possible in the prototype already: under a capture tensors have no data, and a
parameter that is given such a tensor has lost its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from sgc.errors import CaptureError
from sgc.tracing import tracer
from sgc.tracing.source import current_line, is_checkpoint, is_pyro
from sgc.tracing.threads import replaced_here

_IN_PLACE = "write into the tensor in place, under torch.no_grad() (parameter.clamp_(min=0), buffer.copy_(value))"
_HOOK = "compute what the hook does in a torch.autograd.Function whose backward does it, or do it after loss.backward()"
_OUTSIDE = "register the hook once, outside of model and guide"
_BACKWARD = "a derivative that the model needs is torch.autograd.grad's; gradients are accumulated after the call"

_TENSOR: Any = Tensor  # whose attributes are descriptors, not what a tensor holds

_ALWAYS: dict[Callable[..., Any], tuple[str, str]] = {
    _TENSOR.data.__set__: ("assigns to Tensor.data", _IN_PLACE),
    _TENSOR.grad.__set__: ("assigns to Tensor.grad", "set gradients outside of model and guide"),
    _TENSOR.grad.__delete__: ("deletes Tensor.grad", "set gradients outside of model and guide"),
    Tensor.register_hook: ("registers a hook on a tensor's gradient", _HOOK),
    Tensor.register_post_accumulate_grad_hook: ("registers a hook on a parameter's gradient", _OUTSIDE),
    Tensor.backward: ("calls Tensor.backward", _BACKWARD),
    torch.autograd.backward: ("calls torch.autograd.backward", _BACKWARD),
}


def refuse(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raise an error if a torch function changes what a tensor holds, or how gradients reach it, behind a capture.

    :raises CaptureError: with the user's line.
    """
    refused = _ALWAYS.get(func)
    if refused is None:
        return
    if func == _TENSOR.data.__set__ and (args[1] is args[0] or nn.parameter.is_lazy(args[0])):
        return  # module.to() of where the module is, or a lazy module is given its shapes
    if func == Tensor.register_hook and is_pyro():
        return  # to warn of a gradient that is NaN
    raise _error(*refused)


def refuse_traced(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """:func:`refuse`, and what has done no harm in a prototype."""
    refuse(func, args)
    if func in _SWITCHES:
        _refuse_switch(args[0], *args[1:], **kwargs)
    elif func == _TENSOR.grad_fn.__get__ and not (is_pyro() or is_checkpoint()) and _history(args[0]) is not None:
        raise _error("reads the autograd history of a tensor (grad_fn), as a module with a backward hook does", _HOOK)
    elif isinstance(kwargs.get("generator"), torch.Generator):
        raise _error("draws from a torch.Generator", "draw from torch's own: leave generator= out, or use pyro.sample")
    elif func is Tensor.__reduce_ex__:
        raise _error(
            "copies or pickles a tensor by its memory (copy.copy, pickle.dumps)", "use x.clone() or x.detach()"
        )
    elif func in _RESIZES and not tracer.is_fake(args[0]):
        raise _error(f"calls Tensor.{func.__name__} on a tensor from outside", _IN_PLACE)


_SWITCHES = frozenset((Tensor.requires_grad_, _TENSOR.requires_grad.__set__))
_RESIZES = frozenset((Tensor.resize_, Tensor.resize_as_))


def _refuse_switch(tensor: Tensor, requires_grad: bool = True) -> None:
    """What a program sets in each run alike was set by its prototype; another setting holds for a part of it only."""
    if tracer.unwrapped(tensor) is not tensor:
        return  # torch.func.grad sets it on a wrapper of its own
    if tensor.requires_grad != requires_grad and (not tracer.is_fake(tensor) or tracer.is_placeholder(tensor)):
        raise _error(
            "switches requires_grad of a parameter or an argument while it runs",
            "use the parameter's detach(), or torch.func.functional_call with detached parameters; "
            "or switch it outside of model and guide",
        )


def _history(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.grad_fn


class Refusing(TorchFunctionMode):
    """Around a prototype: :func:`refuse`, lest what the program does is done, and the capture fails then."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        refuse(func, args)
        return func(*args, **(kwargs or {}))


@contextmanager
def refusals() -> Iterator[None]:
    """Around a prototype and a capture: refuse what torch tells no mode of."""

    def assign(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self, nn.Parameter):  # of others torch's tracing says so itself
            raise _error("calls Tensor.set_", _IN_PLACE)
        return set_(self, *args, **kwargs)

    def swap(*tensors: Tensor) -> None:
        raise _error("swaps tensors", _IN_PLACE)

    def enter(self: saved_tensors_hooks) -> None:
        # Those of torch's own change where values are kept, or when they are computed.
        if not type(self).__module__.startswith("torch.") or type(self) is saved_tensors_hooks:
            raise _error("enters torch.autograd.graph.saved_tensors_hooks", _HOOK)
        entered(self)

    set_, entered = Tensor.set_, saved_tensors_hooks.__enter__
    with ExitStack() as stack:
        stack.enter_context(replaced_here(Tensor, "set_", assign))
        stack.enter_context(replaced_here(torch._C, "_swap_tensor_impl", swap))
        stack.enter_context(replaced_here(saved_tensors_hooks, "__enter__", enter))
        yield


def _error(what: str, remedy: str) -> CaptureError:
    return CaptureError(
        f"the program {what}, which a compiled program would not do again", source=current_line(), remedy=remedy
    )
