"""What a host's configuration says of the fleet that it is in: ``fleet`` of manager.yaml."""

from typing import Annotated

from mapsave.database_settings import Database
from mapsave.key_types import Name, Place
from mapsave.keys import help


class Fleet(Database, frozen=True):
    """The fleet that this host is in, for its agent."""

    host: Annotated[
        Name | None, help("What the fleet calls this host (default: its host name).")
    ] = None
    state: Annotated[
        Place | None,
        help("The agent's own directory (default: that of its unit, else `fleet` in `state`)."),
    ] = None
