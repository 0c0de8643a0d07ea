"""An attribute that torch does not have is an error that names the workaround, or a warning where results are right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch._inductor.codegen import cpp, cpp_wrapper_cpu
from torch._inductor.scheduler import SchedulerNode

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compilation import Compilation
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.tuning.all_tunings import TUNINGS
from sgc.emit.inductor.workarounds.all_workarounds import WORKAROUNDS
from sgc.errors import BackendError, WorkaroundWarning
from sgc.native.private_attributes import MissingAttribute, entered, private, replaced

SCHEDULER = "torch._inductor.scheduler"


class Holder:
    """In the place of a class of torch's."""

    number = 1

    def method(self) -> int:
        return self.number

    @staticmethod
    def static() -> int:
        return 2

    @classmethod
    def of_class(cls) -> int:
        return cls.number


class Heir(Holder):
    """Has what it has from another class."""


PLACE = f"{__name__}:Holder"


def ten_times(held: Callable[..., int]) -> Callable[..., int]:
    return lambda *arguments: 10 * held(*arguments)


@pytest.mark.parametrize("name", ["method", "static", "of_class"])
@pytest.mark.parametrize("owner", ["Holder", "Heir"])
def test_methods_of_every_kind(owner: str, name: str) -> None:
    holder = {"Holder": Holder, "Heir": Heir}[owner]
    before, plain = dict(vars(holder)), getattr(holder(), name)()
    with pytest.raises(ZeroDivisionError), replaced({f"{__name__}:{owner}.{name}": ten_times}):
        assert getattr(holder(), name)() == 10 * plain
        raise ZeroDivisionError
    assert dict(vars(holder)) == before and getattr(holder(), name)() == plain


@pytest.mark.parametrize(
    "path", ["torch._inductor.nothing:Scheduler", f"{SCHEDULER}:Nothing", f"{SCHEDULER}:Scheduler.nothing"]
)
def test_nothing_is_replaced_where_one_is_missing(path: str) -> None:
    before = SchedulerNode.recompute_size_and_body
    missing = replaced({f"{SCHEDULER}:SchedulerNode.recompute_size_and_body": ten_times, path: ten_times})
    with pytest.raises(MissingAttribute, match=path.replace(":", r"\.")), missing:
        raise AssertionError("it was entered")
    assert SchedulerNode.recompute_size_and_body is before
    with pytest.raises(MissingAttribute):
        private(path)


def test_the_text_of_the_error() -> None:
    patch = replaced({f"{SCHEDULER}:Scheduler.nothing": ten_times})
    with pytest.raises(BackendError) as caught, entered("order_of_draws", patch, right_without=False):
        raise AssertionError("it was entered")
    assert str(caught.value) == (
        "the workaround 'order_of_draws' of a defect of torch cannot be applied: torch "
        f"{torch.__version__} has no torch._inductor.scheduler.Scheduler.nothing; without it results may be wrong\n"
        '  remedy: install a release of torch that sgc was tested with (2.11 to 2.14), or use backend="eager"'
    )


def test_the_text_of_the_warning() -> None:
    patch = replaced({f"{SCHEDULER}:Scheduler.nothing": ten_times})
    with (
        pytest.warns(
            WorkaroundWarning, match="'lean_wrapper' is left out: torch .* has no .*nothing. Results are right"
        ),
        entered("lean_wrapper", patch, right_without=True),
    ):
        pass


def test_every_patch_finds_its_attributes_and_puts_them_back() -> None:
    module = trace(lambda x: [torch.rand(3) + x], [torch.ones(3)])
    compilation = Compilation(module, "torch", on_cpu=True)
    owners = [SchedulerNode, cpp.CppVecOverrides, cpp_wrapper_cpu.CppWrapperCpu, cpp]
    before = [inspect.getmembers_static(owner) for owner in owners]
    with pytest.raises(ZeroDivisionError), ExitStack() as stack:
        for workaround in WORKAROUNDS:
            if workaround.rewrite is not None:
                workaround.rewrite(module)
            if workaround.patch is not None:
                stack.enter_context(workaround.patch(module))
        for tuning in TUNINGS:
            if tuning.patch is not None:
                stack.enter_context(tuning.patch())
            assert tuning.options is None or tuning.options(compilation) is not None
        assert [inspect.getmembers_static(owner) for owner in owners] != before
        raise ZeroDivisionError
    assert [inspect.getmembers_static(owner) for owner in owners] == before


def doubled(x: Tensor) -> list[Tensor]:
    return [2 * x]


@pytest.mark.inductor
@pytest.mark.cpu
def test_a_release_of_torch_without_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled where results may be wrong, and nothing is lost."""
    x = torch.ones(3)
    with monkeypatch.context() as patch, pytest.raises(BackendError, match="the workaround 'lost_renames' of a defect"):
        patch.delattr(SchedulerNode, "recompute_size_and_body")
        compile_graph(trace(doubled, [x]), [x], "fast")
    with pytest.warns(WorkaroundWarning, match="'dispatched_draws' is left out"):
        monkeypatch.delattr(cpp_wrapper_cpu.CppWrapperCpu, "_compatible_with_stableivalue")
        compiled = compile_graph(trace(doubled, [x]), [x], "fast")
    assert torch.equal(compiled(x)[0], 2 * x)
