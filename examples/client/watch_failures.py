#!/usr/bin/env python3
"""Print each operation that fails, as it happens, until the service stops or Ctrl-C."""

import contextlib

from mapsave.client import Client
from mapsave.errors import ServiceUnreachable


def main() -> None:
    for event in Client().events():
        if event.kind != "operation":
            continue
        operation = event.operation()
        if operation.state == "failed":
            why = operation.error["message"] if operation.error else "see its result"
            print(f"{operation.kind} {operation.guest or operation.job}: {why}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, ServiceUnreachable):
        main()
