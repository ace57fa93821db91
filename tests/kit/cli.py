"""Run the ``mapsave`` command as a user does, in a directory of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.kit import processes, tree, wait

COMMAND = [sys.executable, "-m", "mapsave"]


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and its output."""

    arguments: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """Return the one JSON object on standard output; fail if there is anything else."""
        found = json.loads(self.stdout)
        assert isinstance(found, dict), f"not an object: {self.stdout}"
        return found

    def error(self, identity: str | None = None) -> dict[str, Any]:
        """Return the error that ``--json`` printed; fail unless its id is ``identity``."""
        error: dict[str, Any] = self.json()["error"]
        assert error["exit_code"] == self.returncode, self
        assert identity in (None, error["id"]), self
        return error

    def error_id(self) -> str:
        return str(self.error()["id"])


def mapsave(
    *arguments: str | os.PathLike[str],
    check: int | None = None,
    timeout: float = wait.LONG,
    **how: Any,
) -> Result:
    """Run ``mapsave`` to its end, at most ``timeout`` seconds; ``how`` as ``started`` has it.

    With ``check``, fail unless that is the exit code. A traceback on standard error always fails.
    """
    with started(*arguments, **how) as process:
        return ended(process, check=check, timeout=timeout)


def ended(
    process: subprocess.Popen[str], *, check: int | None = None, timeout: float = wait.LONG
) -> Result:
    """Wait for the end of a ``mapsave`` that was started, which goes on if it stands still."""
    process.send_signal(signal.SIGCONT)
    words = tuple(os.fspath(each) for each in process.args)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as slow:
        # Also when it ended but left a child that holds its output open.
        raise AssertionError(f"{words}: {slow}: {slow.output!r} {slow.stderr!r}") from slow
    result = Result(words, process.returncode, stdout, stderr)
    assert "Traceback (most recent call last)" not in stderr, stderr
    assert check in (None, result.returncode), result
    return result


@contextmanager
def started(
    *arguments: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
    command: Sequence[str] = COMMAND,
) -> Iterator[subprocess.Popen[str]]:
    """Start ``mapsave`` with pipes for its output; it is killed at the end if it still runs.

    ``under``: the words before it, of a command that becomes mapsave, such as ``prlimit``.
    ``command``: what runs it in an own way.
    """
    with processes.running(
        [*under, *command, *arguments],
        env={"PYTHONPATH": tree.PYTHONPATH, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@dataclass
class Site:
    """An operator's set-up: images, state and configuration, all below ``directory``."""

    directory: Path
    guests: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images.mkdir(mode=0o700, parents=True)
        self.state.mkdir(mode=0o700)
        self.write()

    @property
    def images(self) -> Path:
        return self.directory / "images"

    @property
    def state(self) -> Path:
        """Where journal and locks are."""
        return self.directory / "state"

    @property
    def socket(self) -> Path:
        """Where a service of this site listens."""
        return self.directory / "mapsave.sock"

    @property
    def jobs(self) -> Path:
        """Where the jobs that it knows by name are; made by ``add_job``."""
        return self.directory / "jobs"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "manager.yaml"

    def write(self) -> None:
        """Write the configuration file as ``guests`` and ``settings`` are now."""
        content = {
            "images": str(self.images),
            "state": str(self.state),
            "socket": str(self.socket),
            "jobs": str(self.jobs),
            # Else the QEMUs that mapsave starts would lack the mark by which strays are found.
            "launch_environment": ["PATH", "LANG", processes.MARK],
            **self.settings,
        }
        if self.guests:
            content["guests"] = self.guests
        self.config.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def add_guest(
        self, name: str, qmp: Path | None = None, launch: list[str] | None = None, **more: Any
    ) -> None:
        """Add a guest to the configuration, or replace it; ``more`` are further keys of it."""
        guest: dict[str, Any] = dict(more)
        if qmp is not None:
            guest["qmp"] = str(qmp)
        if launch is not None:
            guest["launch"] = list(launch)
        self.guests[name] = guest
        self.write()

    def add_job(self, name: str, **content: Any) -> Path:
        """Write a job into the jobs directory, or replace it; ``content`` are its other keys."""
        self.jobs.mkdir(exist_ok=True)
        path = self.jobs / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"job": name, **content}))
        return path

    def add_hook(self, name: str, script: str, *moments: str) -> Path:
        """Write a hook of the shell, and have the configuration run it at these ``moments``."""
        hooks = self.directory / "hooks"
        hooks.mkdir(mode=0o755, exist_ok=True)
        path = hooks / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        settings = self.settings.setdefault("hooks", {"directory": str(hooks)})
        settings |= {moment: [name] for moment in moments}
        self.write()
        return path

    def run(
        self, *arguments: str | os.PathLike[str], env: Mapping[str, str] | None = None, **how: Any
    ) -> Result:
        """Run ``mapsave`` with this configuration; see ``mapsave()``."""
        return mapsave("--config", self.config, *arguments, env=self._env(env), **how)

    @contextmanager
    def start(
        self, *arguments: str | os.PathLike[str], env: Mapping[str, str] | None = None, **how: Any
    ) -> Iterator[subprocess.Popen[str]]:
        """Start ``mapsave`` with this configuration, for tests that signal it; see ``started``."""
        with started("--config", self.config, *arguments, env=self._env(env), **how) as process:
            yield process

    def _env(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Keep whatever might escape the configuration inside the site as well."""
        homes = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
        inside = {home: str(self.directory / "home") for home in homes}
        return {**inside, **(env or {})}
