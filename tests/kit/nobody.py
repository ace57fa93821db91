"""Run ``mapsave`` as a user without any privilege."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.kit import cli
from tests.kit.libvirtd import NOBODY

# Not every Python may be read by other users, so all is imported, what is imported late by a first
# command as well, before the rights go. A process that changes its user may not look into its own
# /proc until it is "dumpable" again (PR_SET_DUMPABLE, prctl(2)).
_AS_NOBODY = f"""
import concurrent.futures.thread, contextlib, ctypes, difflib, encodings.utf_8_sig, importlib, io
import json, os, pkgutil, pwd, sys, tempfile
import mapsave
for found in pkgutil.walk_packages(mapsave.__path__, "mapsave."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
with contextlib.suppress(ImportError):
    import libvirt, libvirt_qemu
from mapsave.cli.main import main
options, commands = sys.argv[1:3], json.loads(sys.argv[3])
exec(sys.argv[4])
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main([*options, "check", "qmp:/nonexistent", "--json"])
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)

def one(words):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            try:
                main([*options, *words, "--json"])
            except SystemExit as ended:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(ended.code)
            finally:
                os._exit(120)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return [code, *(os.pread(each.fileno(), 1 << 20, 0).decode() for each in (out, err))]

print(json.dumps([one(words) for words in commands]))
"""


def as_nobody(site: cli.Site, *arguments: str | Path, check: int | None = None) -> cli.Result:
    """Run ``mapsave`` without any privilege."""
    (done,) = all_as_nobody(site, [arguments])
    assert check in (None, done.returncode), done
    return done


def all_as_nobody(
    site: cli.Site, commands: Sequence[Sequence[str | Path]], *, before: str = ""
) -> list[cli.Result]:
    """Run each of the commands so, one after another, all prepared by one process.

    ``before`` is Python that this process runs first.
    """
    wanted = [[str(word) for word in words] for words in commands]
    command = [sys.executable, "-c", _AS_NOBODY]
    ran = site.run(
        json.dumps(wanted), before, command=command, env={"HOME": "/nonexistent"}, check=0
    )
    results = [
        cli.Result(tuple(words), code, out, err)
        for words, (code, out, err) in zip(wanted, json.loads(ran.stdout), strict=True)
    ]
    for each in results:
        assert "Traceback (most recent call last)" not in each.stderr, each
    return results
