"""``python -m mapsave``: the command line."""

from mapsave.cli.main import command

command()
