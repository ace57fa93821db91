"""How the database of a fleet is reached: for ``fleet.yaml``, and ``fleet`` of ``manager.yaml``."""

import os
import re
import stat
from pathlib import Path
from typing import Annotated, Literal

from mapsave import errors
from mapsave.key_types import Place, Text
from mapsave.keys import Check, Keys, help
from mapsave.service_settings import check_credential

Tls = Literal["verify-full", "require", "disable"]
_SOURCES = ("dsn", "dsn_file", "dsn_credential")
_MOST = 4096  # bytes of a file with a connection string
_OTHERS = stat.S_IRWXO
_PASSWORD = re.compile(r"\bpassword\s*=|://[^/@]*:[^/@]*@")


class Database(Keys, frozen=True):
    """A connection to PostgreSQL; exactly one key says which."""

    dsn_file: Annotated[
        Place | None, help("File that holds the connection string, readable by its owner only.")
    ] = None
    dsn_credential: Annotated[
        str | None,
        Check(check_credential),
        help("Credential of the unit that holds it (systemd.exec(5))."),
    ] = None
    dsn: Annotated[
        Text | None, help("The connection string itself, such as `host=/run/postgresql`.")
    ] = None
    tls: Annotated[Tls, help("What TLS has to prove; a Unix socket has none, and needs none.")] = (
        "verify-full"
    )
    ca: Annotated[Place | None, help("File of the CAs that sign the server's certificate.")] = None
    certificate: Annotated[Place | None, help("File of the client's certificate (PEM).")] = None
    key: Annotated[Place | None, help("File of its key (PEM).")] = None


def check(database: Database) -> Database:
    """Return ``database``; raise ValueError where its keys do not go together."""
    given = [key for key in _SOURCES if getattr(database, key) is not None]
    if len(given) != 1:
        found = f", not {' and '.join(given)}" if given else ""
        raise ValueError(f"needs exactly one of dsn, dsn_file and dsn_credential{found}")
    if database.dsn is not None and _PASSWORD.search(database.dsn):
        raise ValueError("dsn contains a password: put it into a file, and name that by dsn_file")
    if (database.certificate is None) != (database.key is None):
        raise ValueError("certificate and key are given together")
    return database


def text_of(database: Database) -> str:
    """Return the connection string. Raises ConfigError, ConfigMissing or NotPermitted."""
    if database.dsn is not None:
        return database.dsn
    path = _path(database)
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(_MOST + 1)
    except PermissionError as error:
        raise errors.denied(f"cannot read {str(path)!r}: {error.strerror}", path) from None
    except OSError as error:
        raise errors.ConfigMissing(
            f"cannot read the connection string in {str(path)!r}: {error.strerror}"
        ) from None
    if database.dsn_file is not None and mode & _OTHERS:
        raise errors.NotPermitted(
            f"{str(path)!r} may hold a password, and everybody may read it "
            f"(mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod o= {path}",
        )
    text = raw.decode(errors="replace").strip()
    if len(raw) > _MOST or not text or "\0" in text:
        raise errors.ConfigError(f"{str(path)!r} does not hold a connection string")
    return text


def _path(database: Database) -> Path:
    if database.dsn_file is not None:
        return database.dsn_file
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise errors.ConfigMissing(
            f"there is no credential {database.dsn_credential!r}: $CREDENTIALS_DIRECTORY is not "
            "set",
            hint="run as a unit with LoadCredential=, or use dsn_file",
        )
    return Path(directory) / (database.dsn_credential or "")
