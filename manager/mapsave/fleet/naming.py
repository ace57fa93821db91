"""Names of a fleet: operations of tasks, hosts, and the roles of the database."""

import hashlib
import re
import uuid

SCHEMA = "fleet"
TASK = "mapsave.operation"  # the one task of Procrastinate
HOST_BYTES = 40  # Procrastinate notifies "procrastinate_queue_v1#HOST": a channel has 63 bytes
_ROLE_BYTES = 63  # NAMEDATALEN - 1, PostgreSQL's pg_config_manual.h
_HOST = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{HOST_BYTES - 1}}}")
_OPERATION = 12  # digits of an operation's id in the service


def operation_of(task: uuid.UUID) -> str:
    """Return the id of the operation that does the task ``task``, whoever asks for it and when.

    A task that is delivered twice is one operation. The job's id is not used: a database that was
    restored from a copy hands it out again.
    """
    return hashlib.sha256(task.bytes).hexdigest()[:_OPERATION]


def check_host(name: str) -> str:
    """Return ``name`` if a host may have it; raise ValueError otherwise."""
    if not _HOST.fullmatch(name):
        raise ValueError(
            f"{name[:60]!r} is not a name of a host: 1 to {HOST_BYTES} letters, digits, '.', '_' "
            "and '-', a letter or digit first"
        )
    return name


def agents_role(database: str) -> str:
    """Return the role that all agents' roles of a database are members of."""
    return _role(f"{database}_agents")


def people_role(database: str) -> str:
    """Return the role that all people's roles of a database are members of."""
    return _role(f"{database}_people")


def host_role(database: str, host: str) -> str:
    """Return the role that the agent of a host logs in as."""
    return _role(f"{database}_host_{host}")


def _role(name: str) -> str:
    """Return ``name``, shortened by a digest if it is too long: roles are of a whole cluster."""
    if len(name.encode()) <= _ROLE_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    kept = name.encode()[: _ROLE_BYTES - 11].decode(errors="ignore")
    return f"{kept}_{digest}"
