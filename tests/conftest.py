"""Every test starts from an empty param store and a fixed seed, and leaves torch's and Pyro's settings as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyro
import pytest
import torch

os.environ.setdefault("SGC_WAIT", "1")  # what is compiled is what is tested, at the same step each time

if "SGC_TEST_DEVICE" in os.environ:
    torch.set_default_device(os.environ["SGC_TEST_DEVICE"])  # before any test module makes a tensor
    torch.backends.cudnn.allow_tf32 = False  # what is compared is float32

ON_A_GPU = torch.get_default_device().type != "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ON_A_GPU and item.get_closest_marker("cpu"):
            item.add_marker(pytest.mark.skip(reason="is about the CPU"))


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def second_device() -> Iterator[None]:
    """The device of :mod:`tests.second_device`, there before any seeding: torch seeds the devices that it knows.

    Autograd has a thread for each device there was at its first backward, so a backward stays in its caller's.
    """
    from tests.second_device import setup

    setup()
    with torch.autograd.set_multithreading_enabled(False):
        yield
