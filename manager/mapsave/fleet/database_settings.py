"""How the database of the fleet is reached."""

from typing import Annotated

from mapsave.key_types import Place, Text
from mapsave.keys import Keys, help


class Database(Keys, frozen=True):
    """The PostgreSQL that the fleet shares; exactly one of the first three keys says where."""

    dsn: Annotated[Text | None, help("Connection string of libpq, without a password.")] = None
    dsn_file: Annotated[Place | None, help("File that holds the connection string.")] = None


def check_database(found: Database) -> Database:
    """Return ``found``; raise ValueError unless just one key says where the database is."""
    if (found.dsn is None) == (found.dsn_file is None):
        raise ValueError("needs exactly one of dsn and dsn_file")
    return found
