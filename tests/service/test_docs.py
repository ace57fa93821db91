"""The blocks of commands in the documentation that say they are run are run, as they are."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.kit import pages, processes, service, tree, wait

BLOCKS = [each for each in pages.blocks() if each.mark is not None and each.mark.how == "run"]


@pytest.fixture
def mapsaved() -> Iterator[service.Service]:
    """The service of a host with the guests that the pages speak of."""
    with service.reachable_site() as site:
        # QEMU is the emulator, which mapsave starts from the tree.
        site.settings = {"launch_environment": ["PATH", "LANG", "PYTHONPATH", processes.MARK]}
        for name in ("web01", "db"):
            site.add_guest(name, emulator={"memory": "8M"})
        program = site.directory / "bin/mapsave"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mapsave "$@"\n')
        program.chmod(0o755)
        with service.running(site) as running:
            yield running


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_as_it_is_written(block: pages.Block, mapsaved: service.Service) -> None:
    site = mapsaved.site
    assert block.mark is not None
    program = ["bash", "-e", "-u", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    for words in (["bash", "-e", "-c", block.mark.what], [*program, block.text]):
        done = subprocess.run(
            words,
            cwd=site.directory,
            env={
                **os.environ,
                "PATH": f"{site.directory}/bin:{os.environ['PATH']}",
                "PYTHONPATH": tree.PYTHONPATH,
                "MAPSAVE_CONFIG": str(site.config),
                "HOME": str(site.directory),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=wait.LONG,
        )
        assert done.returncode == 0, done


def test_there_are_such_blocks() -> None:
    assert {each.language for each in BLOCKS} == {"sh", "python"}
