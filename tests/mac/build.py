"""Build the disk before the stage that boots it: ``python -m tests.mac.build``.

``tests/run.sh`` runs it beside the stages before. SIGTERM ends it, with nothing left behind.
"""

from __future__ import annotations

import signal
import sys

from tests.mac import image


def main() -> None:
    """Build what is not built yet; where that cannot be done, do nothing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if image.unavailable() is None:
        image.files()


if __name__ == "__main__":
    main()
