"""A file for node_exporter's textfile collector, which reads ``*.prom`` whenever it is scraped."""

import contextlib
import os
from pathlib import Path

_MODE = 0o644  # node_exporter runs as another user


def replace(path: Path, content: bytes) -> None:
    """Make ``content`` the content of ``path`` at once: no reader sees half of it.

    Raises OSError, with the file as it was and nothing left beside it.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # not *.prom, so it is not read
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # that of a service which was killed in the meantime
    # Others may write to the directory: what they put there under that name is not opened.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, _MODE)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, _MODE)  # whatever the umask is
            file.write(content)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
