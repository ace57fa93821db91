"""Run ``mapsave`` as a user without any privilege."""

import sys
from pathlib import Path

from tests.kit import cli
from tests.kit.libvirtd import NOBODY

# Not every Python may be read by other users, so all is imported, what is imported late by a first
# command as well, before the rights go. A process that changes its user may not look into its own
# /proc until it is "dumpable" again (PR_SET_DUMPABLE, prctl(2)).
_AS_NOBODY = f"""
import contextlib, ctypes, encodings.utf_8_sig, importlib, io, os, pkgutil, sys
import mapsave
for found in pkgutil.walk_packages(mapsave.__path__, "mapsave."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
with contextlib.suppress(ImportError):
    import libvirt, libvirt_qemu
from mapsave.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main([*sys.argv[1:3], "check", "qmp:/nonexistent", "--json"])
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
main()
"""


def as_nobody(site: cli.Site, *arguments: str | Path, check: int | None = None) -> cli.Result:
    """Run ``mapsave`` without any privilege."""
    command = [sys.executable, "-c", _AS_NOBODY]
    return site.run(
        *arguments, "--json", command=command, env={"HOME": "/nonexistent"}, check=check
    )
