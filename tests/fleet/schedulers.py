"""Schedulers as processes of their own."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kit import cli, processes, tree, wait
from tests.kit.fleet import Fleet


def write(fleet: Fleet, text: str, name: str = "fleet.yaml") -> Path:
    """Write fleet.yaml with the database of the test; return its path."""
    path = fleet.directory / name
    path.write_text(f"database: {{dsn: '{fleet.settings.dsn}'}}\n{text}")
    return path


@dataclass
class Scheduler:
    """A process of ``mapsave fleet scheduler``."""

    process: subprocess.Popen[str]
    log: Path

    def logged(self, words: str) -> int:
        """Return how often it has logged ``words``."""
        return self.log.read_text().count(words)

    def await_log(self, words: str) -> None:
        """Wait until it has logged ``words``."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(self.logged(words))

        wait.until(is_there, what=f"{words!r} in the scheduler's log")

    def stop(self) -> int:
        """Stop it by SIGTERM; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait.LONG)


@contextlib.contextmanager
def running(path: Path, name: str, **environ: str) -> Iterator[Scheduler]:
    """Run a scheduler; its log, in which no error of its own may be, is beside fleet.yaml."""
    log = path.with_name(f"{name}.log")
    words = [*cli.COMMAND, "fleet", "scheduler", "--fleet", str(path)]
    env = {"PYTHONPATH": tree.PYTHONPATH, **environ}
    with (
        log.open("w") as output,
        processes.running(
            words, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True
        ) as process,
    ):
        yield Scheduler(process, log)
    assert "Traceback" not in log.read_text(), log.read_text()
