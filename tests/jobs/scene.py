"""A site whose hooks note what is passed to them."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapsave import config as configuration
from mapsave.config import Config
from mapsave.service_settings import Hooks

from tests.kit import cli, qmp, wait

MOMENTS = ("before_save", "after_save", "on_failure", "before_restore", "after_restore")
# Each hook puts down what it was told, one line of JSON, then does what the test wants of it.
NOTE = f"""#!{sys.executable}
import json, os, pathlib, sys, time
here = pathlib.Path(@here@)
moment = os.environ["MAPSAVE_HOOK"]
with open(here / "told", "a") as told:
    told.write(sys.stdin.read() + "\\n")
if (here / f"no-{{moment}}").exists():
    sys.exit("not today")
while (here / f"hang-{{moment}}").exists():
    time.sleep(0.05)
"""


class Scene:
    """A site whose hooks note what is passed to them."""

    def __init__(self, site: cli.Site) -> None:
        self.site = site
        self.here = site.directory / "notes"
        self.here.mkdir()
        directory = site.directory / "hooks.d"
        directory.mkdir(mode=0o755)
        path = directory / "note"
        path.write_text(NOTE.replace("@here@", repr(str(self.here))))
        path.chmod(0o755)
        self.hooks = Hooks(directory, **dict.fromkeys(MOMENTS, ("note",)))
        site.settings["hooks"] = {
            "directory": str(directory),
            **{moment: ["note"] for moment in MOMENTS},
        }
        site.write()

    def told(self) -> list[dict[str, Any]]:
        """Return what the hooks were told so far, in order."""
        path = self.here / "told"
        return [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []

    def moments(self) -> list[tuple[str, str | None]]:
        """Return moment and outcome of each hook that has run."""
        return [(each["moment"], each["outcome"]) for each in self.told()]

    async def until(self, moment: str) -> None:
        """Wait until a hook of ``moment`` runs."""
        await asyncio.to_thread(
            wait.until, lambda: moment in [each for each, _ in self.moments()], what=moment
        )

    def config(self) -> Config:
        return configuration.load(self.site.config, {})

    @contextmanager
    def guest(self, *options: str) -> Iterator[Path]:
        """Run the emulated guest web01; yield its monitor's socket."""
        socket = self.site.directory / "web01.qmp"
        words = ("--qmp", socket, "--memory", "16M", "--pattern", "random", "--name", "web01")
        with cli.started("emulate", *words, *options):
            self.site.add_guest("web01", socket)
            qmp.connect(socket).close()
            yield socket
