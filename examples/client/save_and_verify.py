#!/usr/bin/env python3
"""Save a guest, leave it running, and verify the image: save_and_verify.py GUEST [HOST]

Prints how far it is. Exits with the code that the command would: 0, or the error's. HOST is a name
in 'hosts' of the configuration; without one it is the service of this host.
"""

import sys

from mapsave.client import Client, Progress, SaveOptions, host
from mapsave.errors import MapsaveError


def show(now: Progress) -> None:
    left = "" if now.eta_s is None else f", {now.eta_s:.0f} s left"
    print(f"{now.phase}: {now.done_bytes} of {now.total_bytes} bytes{left}", file=sys.stderr)


def main(guest: str, *where: str) -> int:
    try:
        client = Client(host(*where)) if where else Client()
        saved = client.save(guest, SaveOptions(then="resume", note="by a script"), report=show)
        (last,) = client.images(guest, latest=True)
        client.verify(last.name)
    except MapsaveError as error:
        print(f"{error.id}: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"{last.name}: {saved.data_bytes} bytes, paused for {saved.downtime_s} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
