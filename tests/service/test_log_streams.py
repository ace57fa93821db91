"""Streams that do not take the log, which no one who logs may notice."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave.service.log import setup

from tests.kit import tree

plain = logging.getLogger("mapsave.labels.test")


def run(code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after what configures the log in a fresh Python."""
    begin = "import logging, os, sys\nfrom mapsave.service.log import setup as logs\n"
    begin += "log = logging.getLogger('x')\n"
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        cwd=tree.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **how,
    )


def test_a_full_stderr_is_no_error() -> None:
    with open("/dev/full", "w") as full:
        done = run("logs.configure('text')\nlog.error('x' * 10000)\nprint('on')", stderr=full)
    assert (done.returncode, done.stdout) == (0, "on\n")


@pytest.mark.parametrize(
    "close", ["os.close(2)", "sys.stderr.close()", "sys.stderr = None; logs.configure('text')"]
)
def test_a_closed_stderr_is_no_error(close: str) -> None:
    code = f"logs.configure('text')\n{close}\nlog.error('x')\nprint('on')"
    done = run(code, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_a_closed_stderr_writes_to_no_other_file(tmp_path: Path) -> None:
    """Behind a stream that is closed its number may be that of an image."""
    code = (
        "stream = open('a', 'w')\nlogs.configure('text', stream=stream)\nnumber = stream.fileno()\n"
        "stream.close()\nfile = os.open('b', os.O_CREAT | os.O_WRONLY)\n"
        "assert file == number\nlog.error('x')\nprint(os.fstat(file).st_size)"
    )
    done = run(f"os.chdir({os.fspath(tmp_path)!r})\n{code}", stderr=subprocess.PIPE)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.fixture
def pipe() -> Iterator[tuple[int, Any]]:
    """A pipe: the end to read, and a stream that writes to it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def test_nobody_waits_for_a_reader_that_hangs(pipe: tuple[int, Any]) -> None:
    """The pipe blocks: only whoever asks before can go on."""
    reading, stream = pipe
    with setup.configured("json", stream=stream):
        for number in range(2000):
            plain.info("x" * 200, extra={"step": number})
        data = os.read(reading, 1 << 20)
        plain.info("after")
        data += os.read(reading, 1 << 20)
    lines = data.splitlines()
    steps = [json.loads(line).get("step") for line in lines[:-2]]
    assert steps == list(range(len(steps)))
    assert 10 < len(steps) < 2000
    assert json.loads(lines[-1])["event"] == "after"


def test_a_line_longer_than_the_pipe_is_cut_and_the_next_is_whole(pipe: tuple[int, Any]) -> None:
    reading, stream = pipe
    with setup.configured("json", stream=stream):
        plain.info("x" * 300_000)
        assert 0 < len(os.read(reading, 1 << 20)) < 300_000
        plain.info("next")
        first, second = os.read(reading, 1 << 20).splitlines()
    assert first == b""
    assert json.loads(second)["event"] == "next"


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, Any]) -> None:
    reading, stream = pipe
    with setup.configured("text", stream=stream):
        other = os.dup(os.open(os.devnull, os.O_RDONLY))
        os.dup2(other, reading)
        os.close(other)
        plain.info("nobody reads it")
