"""``python -m mapsave``: the command line."""

from mapsave.cli.start import command

command()
