"""A command that is a fork behaves as one that Python was started for."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, processes, tree, wait, warm

_FACTS = """
import json, os, resource, signal, sys, threading
import mapsave
print(json.dumps({
    "words": sys.argv, "path": sys.path[0], "directory": os.getcwd(), "name": __name__,
    "environment": sorted(os.environ.items()),
    "files": os.listdir("/proc/self/fd")[:-1], "input": sys.stdin.read(),
    "limit": resource.getrlimit(resource.RLIMIT_NOFILE), "threads": threading.active_count(),
    "signals": [str(signal.getsignal(each)) for each in (2, 15, 17, 13)][1:],
    "streams": [sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.line_buffering],
    "mask": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
}, sort_keys=True))
"""
_ENDS = {
    "exit": "import mapsave, sys; print('out'); sys.exit(7)",
    "words": "import mapsave, sys; sys.exit('words')",
    "raise": "import mapsave; raise ValueError('no')",
    "abort": "import mapsave, os; os.abort()",
    "interrupt": "import mapsave, os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "atexit": "import mapsave, atexit; atexit.register(print, 'late')",
    "thread": "import mapsave, threading; threading.Timer(0.1, print, ['late']).start()",
}


def _ran(code: str, *words: str, **options: Any) -> tuple[tuple[int, str, str], type]:
    with processes.running(
        [sys.executable, "-c", code, *words],
        env={"PYTHONPATH": tree.PYTHONPATH, "HOME": "/home/ä", "NEW": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        out, errors = process.communicate("to it", timeout=wait.LONG)
        # Of a traceback, only the frames of the code itself are the same.
        errors = errors[errors.find('  File "<string>"') :]
        return (process.returncode, out, errors), type(process)


def _both(
    monkeypatch: pytest.MonkeyPatch, code: str, *words: str, **options: Any
) -> tuple[int, str, str]:
    """Run it either way, which must be the same; return exit code and output."""
    found, kind = _ran(code, *words, **options)
    assert kind is warm.Popen
    with monkeypatch.context() as patch:
        patch.setenv("MAPSAVE_TEST_COLD", "1")
        cold, kind = _ran(code, *words, **options)
    assert kind is subprocess.Popen
    assert found == cold
    return found


def test_it_finds_what_it_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, out, _ = _both(monkeypatch, _FACTS, "--word", "\udcff", cwd=tmp_path)
    assert code == 0
    assert str(tmp_path) in out and "to it" in out


@pytest.mark.parametrize("code", _ENDS.values(), ids=_ENDS.keys())
def test_it_ends_as_it_would(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    _both(monkeypatch, code)


def test_it_is_waited_for_and_killed() -> None:
    code = "import mapsave, time; print('up', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code]
    with processes.running(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert processes.strays()[process.pid] == " ".join(command)
        assert not warm.pids() & processes.strays().keys()
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(wait.LONG) == process.poll() == -signal.SIGTERM
        assert not os.path.exists(f"/proc/{process.pid}")


@pytest.mark.parametrize(
    ("words", "environment", "options"),
    [
        (["prlimit", "--", *cli.COMMAND], {}, {}),
        (cli.COMMAND, {}, {"start_new_session": True}),
        (cli.COMMAND, {"LD_PRELOAD": "a library"}, {}),
        (cli.COMMAND, {"LC_ALL": "another"}, {}),
        ([sys.executable, "-c", "pass"], {}, {}),
    ],
)
def test_python_is_started_for_the_rest(
    words: list[str], environment: dict[str, str], options: dict[str, Any]
) -> None:
    usual = processes.environment({"PYTHONPATH": tree.PYTHONPATH})
    assert warm.program(cli.COMMAND, usual, {}) == "commands"
    assert warm.program([*cli.COMMAND, "serve"], usual, {}) == "service"
    assert warm.program(words, {**usual, **environment}, options) is None
