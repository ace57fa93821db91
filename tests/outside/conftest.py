"""Fixtures of what is outside of mapsave: the boots of a host that has it."""

from tests.vm.boots import booted, pytest_configure

__all__ = ["booted", "pytest_configure"]
