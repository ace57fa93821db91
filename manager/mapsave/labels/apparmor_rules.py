"""AppArmor's rules as text: how a path is written, and lines put into and taken out of a file.

Source: apparmor.d(5), "Globbing (AARE)" and the quoting of file names; tried with apparmor_parser
3.0.8 (``--dump=rule-exprs``).
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mapsave import file_lock
from mapsave.labels.system import System

MARK = "  # mapsave"

_GLOB = set("*?[]{}^\\")
_COMMENT = re.compile(r"(?:^|(?<=[\s,>\"]))#(?!include\s)")


def quote(path: str) -> str:
    """Return ``path`` in double quotes so that a profile means this very name."""
    return '"' + "".join(map(_escaped, path)) + '"'


def rule(path: str, permissions: str) -> str:
    """Return the rule for ``path``, comma included: ``"/a b" rw,``."""
    return f"{quote(path)} {permissions},"


def _escaped(character: str) -> str:
    if character in _GLOB or character == '"':
        return "\\" + character
    if character < " " or character == "\x7f":
        return f"\\{ord(character):03o}"
    return character


def parser() -> str | None:
    """Return where apparmor_parser is, if it is installed."""
    import shutil  # rarely needed, and slow to import

    return shutil.which("apparmor_parser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def parsed(system: System, option: str, profile: Path | str) -> str | None:
    """Load (``-r``) or remove (``-R``) a profile, of a file or as text; return the complaint.

    The cache is neither read nor written: what mapsave loads is there for minutes only.
    """
    command = [parser() or "apparmor_parser", option, "-K"]
    if isinstance(profile, Path):
        return system.run([*command, str(profile)])
    return system.run(command, profile.encode())


@contextlib.contextmanager
def locked(rules_file: Path) -> Iterator[None]:
    """Keep other saves from changing and loading the same profile in the meantime. Raises OSError.

    The directory is locked: AppArmor asks for write permission, which mapsave's own profile has on
    it, but not on profiles (security/apparmor/lsm.c, ``common_file_perm`` with F_WRLCK).
    """
    fd = os.open(rules_file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file_lock.exclusive(fd)
        yield
    finally:
        os.close(fd)


def add(file: Path, rules: Sequence[str]) -> None:
    """Append one line for each of ``rules``; the file may be new. Raises OSError."""
    lines = _lines(file)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    _replace(file, [*lines, *map(_line, rules)])


def remove(file: Path, rules: Sequence[str]) -> bool:
    """Take out one line for each of ``rules``; return whether there was any. Raises OSError."""
    lines = _lines(file)
    before = len(lines)
    for each in map(_line, rules):
        if each in lines:
            lines.remove(each)
    if len(lines) == before:
        return False
    _replace(file, lines)
    return True


def includes(profile_text: str, rules_file: Path) -> bool:
    """Return whether a profile includes ``rules_file``, by its name or that of its directory."""
    for line in _without_comments(profile_text):
        words = line.split()
        if words[:1] in (["include"], ["#include"]):
            named = Path(words[-1].strip('<>"'))
            if named.name in (rules_file.name, rules_file.parent.name):
                return True
    return False


def attaches(profile_text: str, name: str) -> bool | None:
    """Return whether the profile ``name`` has the flag attach_disconnected; None: not found."""
    text = "\n".join(_without_comments(profile_text))
    # The brace that opens it is a word of its own, those of a pattern are not.
    head = re.search(rf'(?:^|[\s"]){re.escape(name)}(?=["\s{{])(.*?)\{{(?=\s|$)', text, re.DOTALL)
    return None if head is None else "attach_disconnected" in head[1]


def _without_comments(profile_text: str) -> list[str]:
    """Return the lines without comments; ``#include`` is none, ``# include`` is one."""
    return [_COMMENT.split(line.strip(), maxsplit=1)[0] for line in profile_text.splitlines()]


def _line(rule_text: str) -> bytes:
    return os.fsencode(f"  {rule_text}{MARK}\n")


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _replace(file: Path, lines: Sequence[bytes]) -> None:
    """Rewrite the file and rename it into place, with the owner and mode it had.

    Always by the same name, so that those who die in the meantime leave one file at most.
    """
    temporary = file.with_name(f".mapsave-{file.name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with open(fd, "wb") as new:
            new.write(b"".join(lines))
            try:
                old = os.stat(file)
            except FileNotFoundError:
                os.fchmod(fd, 0o644)
            else:
                os.fchown(fd, old.st_uid, old.st_gid)
                os.fchmod(fd, old.st_mode & 0o7777)
            new.flush()
            os.fsync(fd)
        os.rename(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
