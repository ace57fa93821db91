#!/usr/bin/env python3
"""Save guests at the same time, all or none: save_all_or_none.py GUEST...

Where one fails the other saves are cancelled, and their guests are as before: cancelling a task
cancels its operation, and waits until everything is rolled back. The images of saves that were
complete by then, or about to be, so that they could not be cancelled any more, are discarded.
"""

import asyncio
import secrets
import sys

from mapsave import errors
from mapsave.client import AsyncClient, SaveOptions


async def save(client: AsyncClient, guest: str, number: str) -> str:
    done = await client.save(guest, SaveOptions(then="resume"), operation=number)
    assert done.image is not None
    return done.image.rpartition("/")[2]


async def discard(client: AsyncClient, number: str) -> None:
    """Discard the image of a save, if it made one."""
    try:
        done = await client.operation(number)
    except errors.UnknownOperation:  # the service has refused to begin it
        return
    if done.state == "done" and done.image is not None:
        await client.discard(done.image.rpartition("/")[2], unrestored=True)


async def main(guests: list[str]) -> int:
    client = AsyncClient()
    # A task that is cancelled does not return what became of its save: that is asked for by its id.
    numbers = [secrets.token_hex(6) for _ in guests]
    try:
        async with asyncio.TaskGroup() as group:
            saves = [
                group.create_task(save(client, guest, number))
                for guest, number in zip(guests, numbers, strict=True)
            ]
    except ExceptionGroup as failed:
        for error in failed.exceptions:
            print(error, file=sys.stderr)
        for number in numbers:
            await discard(client, number)
        return 1
    for each in saves:
        print(each.result())
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
