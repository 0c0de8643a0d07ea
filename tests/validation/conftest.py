"""Fixtures of the tests of validation."""

from tests.training.conftest import uncompiled as uncompiled
