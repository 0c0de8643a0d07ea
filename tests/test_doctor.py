"""The doctor's report: what is there, what is missing, and whether each backend works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import torch._inductor.config as inductor_config
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.scheduler import SchedulerNode

from sgc import doctor
from sgc.emit.inductor.workarounds.all_workarounds import WORKAROUNDS
from sgc.errors import BackendError
from sgc.native.switches import without


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = doctor.main()
    return status, capsys.readouterr().out


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the eager backend is tried."""
    monkeypatch.setattr(doctor, "names", lambda: ("eager",))


@pytest.mark.inductor
@pytest.mark.cpu
def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    pyro.param("heads", torch.tensor(3.0))
    state = torch.get_rng_state()
    status, text = report(capsys)
    assert status == 0 and text.endswith("all backends work\n")
    for backend in ("inductor", "eager", "torchscript"):
        assert f"  {backend:12s} ok " in text
    for workaround in WORKAROUNDS:
        on_a_gpu = all(program.device == "cuda" for program in workaround.programs)
        shown = "not needed" if on_a_gpu or not workaround.is_needed else "active"
        assert f"  {workaround.name:22s} {shown}" in text
    assert (f"torch {torch.__version__}" in text and "g++" in text) or "clang" in text
    assert pyro.param("heads").item() == 3.0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("quick")
def test_without_a_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "no compiler")
    monkeypatch.setenv("CXX", path)
    cpp_compiler_search.cache_clear()
    try:
        with inductor_config.patch({"cpp.cxx": (None, path)}):
            status, text = report(capsys)
    finally:
        cpp_compiler_search.cache_clear()
    assert status == 0  # of the backends that were tried
    assert "none that starts: the environment variable CXX is" in text
    assert "apt-get install g++" in text


def test_a_backend_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(model: Any, guide: Any, *, backend: str, **options: Any) -> Any:
        raise BackendError(f"no {backend} today", remedy="wait")

    monkeypatch.setattr("sgc.compile", compile)
    status, text = report(capsys)
    assert status == 1
    assert "  eager        failed" in text
    assert "    BackendError: no eager today\n      remedy: wait" in text


@pytest.mark.usefixtures("quick")
def test_wrong_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.TraceGraph_ELBO, "loss_and_grads", lambda *_: 7.0)
    status, text = report(capsys)
    assert status == 1 and "the numbers are not Pyro's" in text


@pytest.mark.usefixtures("quick")
def test_a_workaround_is_off_or_cannot_be_applied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SchedulerNode, "recompute_size_and_body")
    with without("own_memory", "lean_wrapper"):
        _, text = report(capsys)
    assert f"{'own_memory':22s} switched off" in text and "switched off besides: lean_wrapper" in text
    assert (
        f"{'lost_renames':22s} CANNOT BE APPLIED: torch {torch.__version__} has no torch._inductor.scheduler." in text
    )
