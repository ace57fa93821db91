"""Executables of the operator, run before and after operations."""
