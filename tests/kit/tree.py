"""Where the project's tree is, and what a process needs to import it."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "manager"
PYTHONPATH = os.pathsep.join((str(SOURCES), str(ROOT)))
