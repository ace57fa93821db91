"""The boots of the modes of this stage."""

from tests.vm.boots import booted, pytest_configure

__all__ = ["booted", "pytest_configure"]
