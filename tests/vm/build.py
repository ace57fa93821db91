"""Build the disk, and boot it for stages: ``python -m tests.vm.build [DIRECTORY STAGE...]``.

``tests/run.sh`` runs it beside the other stages. Each boot that came to its end
leaves its serial line in ``DIRECTORY/MODE/``, by the first of the modes that share it. For
``outside`` the packages are built, too. SIGTERM ends it, and nothing else is left behind.
"""

import contextlib
import signal
import sys
from pathlib import Path

from tests.outside import packages
from tests.vm import image, machine


def main(directory: str | None = None, *stages: str) -> None:
    """Build what is not built yet, and boot; where that cannot be done, do nothing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if image.unavailable() is not None:
        return
    image.files()
    if directory is None:
        return
    wanted = [mode for stage in stages for mode in machine.of(stage)]
    for modes in machine.together(wanted):  # one at a time: the other processor is taken
        partial = Path(directory) / f"{modes[0]}.partial"
        partial.mkdir()
        machine.boot(modes, partial)
        partial.rename(partial.with_suffix(""))
    if "outside" in stages and packages.unavailable() is None:
        for release in packages.PYTHONS:
            with contextlib.suppress(AssertionError):  # which the tests of the package report
                packages.built(release, Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
