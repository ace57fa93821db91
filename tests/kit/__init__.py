"""The test kit: real QEMU, real file systems, a live Linux guest, the ``mapsave`` command.

Nothing in here uses ``manager``: tests look at mapsave from outside.
"""

import pkgutil

import pytest

# Their assertions explain themselves as those of tests do.
pytest.register_assert_rewrite(
    *(f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__))
)
