"""``mapsaved``: the service's entry point, ``mapsave serve`` under the name that units know."""

from mapsave.cli import start


def main() -> None:
    """Run the service with the global options of ``mapsave``, and exit as ``mapsave`` does."""
    start.command("serve")
