"""What the domains that mapsave saved on this host had of it: programs, paths, devices.

A transient domain is defined nowhere once it has been saved. So a save notes in the state directory
what the domain named while libvirt ran it, and a restore takes that for what the domain may have.
An image cannot bring such a note along: the state directory is mapsave's own.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave.image import ownership
from mapsave.operations import locks, trust

if TYPE_CHECKING:
    from mapsave.domain_resources import Resource
    from mapsave.monitor.domain import Domain

_MOST = 10_000  # resources that are kept of a domain, those of its earlier saves included
_MOST_BYTES = 16 << 20
_log = logging.getLogger(__name__)


def remember(state: Path, domain: Domain) -> None:
    """Note what ``domain`` names now, beside what it named at earlier saves. Blocks.

    One that cannot be written is a warning: a restore may need ``--trust-image`` then.
    """
    from mapsave.domain_resources import of_xml

    now = {each for xml in (domain.xml, domain.persistent_xml) if xml for each in of_xml(xml)}
    before = recorded(state, domain.uuid)
    if now <= before:
        return
    kept = sorted(now | before if len(now | before) <= _MOST else now)
    try:
        path = locks.state_directory(state, "domains") / f"{domain.uuid}.json"
        found = {"resources": [[each.kind, each.name] for each in kept]}
        locks.replace(path, json.dumps(found))
    except OSError as error:
        _log.warning("cannot record what domain %r uses: %s", domain.name, error.strerror)


def recorded(state: Path, uuid: str) -> set[Resource]:
    """Return what was noted of a domain; nothing where others could have written it. Blocks."""
    from mapsave.domain_resources import Resource

    path = state / "domains" / f"{uuid}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with path.open("rb") as file:
            if ownership.of_file(str(path), file.fileno(), trust.users()):
                _log.warning("%s is writable by others and was ignored", path)
                return set()
            found = json.loads(file.read(_MOST_BYTES))["resources"]
        return {Resource(kind, str(name)) for kind, name in found}
    return set()
