"""Finish or undo what an interrupted mapsave left, from its journal.

After this a guest is in the state it had, or its image is committed: never neither. What a journal
says was *about to be done* may or may not have been done, so QEMU and the file are asked. A damaged
journal keeps no other operation from being recovered: what it was about is known from its other
lines, or from the partial image (``interrupted.py``).
"""

import asyncio
import collections
import contextlib
import functools
import os
from collections.abc import Awaitable, Callable
from typing import TypedDict

from mapsave import errors
from mapsave.config import Config
from mapsave.image import abandoned, partial_names, store
from mapsave.labels.label import Problem
from mapsave.operations import (
    answering,
    interrupted,
    journal,
    journal_facts,
    recover_restore,
    recover_save,
    recovered_notes,
)
from mapsave.operations.begun import RestoreBegun, SaveBegun
from mapsave.operations.interrupted import Interrupted
from mapsave.operations.recovered_notes import Line

Told = Callable[[Line, journal.Orphan], Awaitable[None]]


class Recovered(TypedDict):
    """What ``mapsave recover --json`` prints; ``damaged`` are the journals that are kept."""

    operations: list[Line]
    swept: list[str]
    damaged: list[str]
    warnings: list[str]
    dry_run: bool


async def recover(config: Config, *, dry_run: bool = False, told: Told | None = None) -> Recovered:
    """Deal with every operation whose manager died, then sweep partial images without an owner.

    With ``dry_run`` each entry says what would be done. An operation that cannot be dealt with yet
    (its QEMU does not answer), or whose label could not be taken back, keeps its journal and is
    reported. ``told`` gets each entry with its journal as soon as it is there: a save that QEMU is
    still doing may take long.
    """
    warnings: list[str] = []
    images = functools.partial(answering.within, config.images)
    turns: dict[object, asyncio.Lock] = collections.defaultdict(asyncio.Lock)

    async def in_turn(orphan: journal.Orphan) -> Line:
        async with contextlib.AsyncExitStack() as stack:
            for shared in _shared(orphan):
                await stack.enter_async_context(turns[shared])
            return await _one(config, orphan, told, dry_run=dry_run)

    with journal.orphans(config.state) as orphans:
        # Side by side: a save that QEMU is still doing may take long, and the others wait for none,
        # but for another operation of the same guest, or another restore of the same image.
        # The newest first, as any undo: it has found what the others have left.
        orphans.sort(key=_changed, reverse=True)
        works = [in_turn(orphan) for orphan in orphans if not await _is_blank(config, orphan)]
        operations = await asyncio.gather(*works)
    swept: list[str] = []
    try:
        if not dry_run:
            is_blank = functools.partial(interrupted.is_blank, config)
            await images(journal.remove_empty, config.state, is_blank)
        swept = await images(functools.partial(sweep, config, warnings, dry_run=dry_run))
    except errors.BadDirectory as error:
        warnings.append(error.message)
    return {
        "operations": operations,
        "swept": swept,
        "damaged": [str(path) for path in journal_facts.damaged(config.state)],
        "warnings": warnings,
        "dry_run": dry_run,
    }


def _shared(orphan: journal.Orphan) -> list[tuple[str, str]]:
    """Return what only one recovery may deal with at a time, in the order to wait for it."""
    found = [("guest", str(orphan.facts.get("guest", orphan.path)))]
    if orphan.kind in ("restore", "prove"):  # which locks its image: several clones have the same
        found.append(("image", str(orphan.facts.get("image", orphan.path))))
    return found


def _changed(orphan: journal.Orphan) -> int:
    try:
        return orphan.path.stat().st_mtime_ns
    except OSError:
        return 0


async def _is_blank(config: Config, orphan: journal.Orphan) -> bool:
    """Do as ``interrupted.is_blank``; True as long as the image directory does not answer."""
    if orphan.problem != journal.BLANK:
        return False
    try:
        return await answering.within(config.images, interrupted.is_blank, config, orphan)
    except errors.BadDirectory:
        return True


async def _known(config: Config, orphan: journal.Orphan) -> journal.Orphan:
    """Do as ``interrupted.known``, which looks for what a damaged journal does not say."""
    if orphan.problem is None:
        return orphan
    return await answering.within(config.images, interrupted.known, config, orphan)


async def _one(config: Config, orphan: journal.Orphan, told: Told | None, *, dry_run: bool) -> Line:
    line: Line = {
        "operation": orphan.kind,
        "id": orphan.facts.get("operation"),
        "guest": orphan.facts.get("guest"),
        "image": None,
        "monitor": None,
        "interrupted_at": orphan.last,
        "outcome": None,
        "warnings": [],
        "error": None,
    }
    await _deal_with(config, orphan, line, dry_run=dry_run)
    if told is not None:
        await told(line, orphan)
    return line


async def _deal_with(config: Config, orphan: journal.Orphan, line: Line, *, dry_run: bool) -> None:
    problems: list[Problem] = []
    try:
        known = await _known(config, orphan)
        begun = interrupted.read(known)
        monitor = begun.monitor.address if begun.monitor is not None else None
        line |= {"guest": begun.guest, "image": begun.image, "monitor": monitor}
        match begun:
            case SaveBegun():
                save = Interrupted(config, known, begun, dry_run, problems)
                line["outcome"] = await recover_save.recover(save)
            case RestoreBegun():
                restore = Interrupted(config, known, begun, dry_run, problems)
                line["outcome"] = await recover_restore.recover(restore)
    except errors.MapsaveError as error:
        line["error"] = error.as_dict()
        if isinstance(error, errors.JournalLost) and not dry_run:
            line["warnings"] += filter(None, [journal.forget(orphan)])
        return
    except OSError as error:
        where = str(error.filename or orphan.path)
        line["error"] = errors.of_os_error(
            error,
            f"{where}: {error.strerror}",
            where,
            os.R_OK | os.W_OK,
            otherwise=errors.SaveFailed,
            hint="fix that, then recover again",
        ).as_dict()
        return
    except Exception as error:
        # A journal that is not as we write them must not keep the others from being recovered.
        words = f"{str(orphan.path)!r}: unexpected {type(error).__name__}: {error}"
        line["error"] = errors.JournalUnusable(words, hint=interrupted.HINT).as_dict()
        return
    line["warnings"] = [problem.text for problem in problems]
    # What is still loaded or labelled is taken back by the next recovery, and only by its journal.
    if not dry_run and not any(problem.recoverable for problem in problems):
        line["warnings"] += filter(None, [_noted(config, line), journal.forget(orphan)])


def _noted(config: Config, line: Line) -> str | None:
    """Note the outcome for the service whose operation it was; return why that failed."""
    try:
        recovered_notes.note(config.state, line)
    except (OSError, errors.MapsaveError) as error:
        return f"a service may not learn what became of operation {line['id']}: {error}"
    return None


def sweep(config: Config, warnings: list[str], *, dry_run: bool) -> list[str]:
    """Remove partial images of the image directory that no one owns; return their paths.

    Owned is what a manager has locked, or what a journal, also a damaged one, still speaks of.
    """
    try:
        if not config.images.is_dir():
            return []
        with store.directory(config.images) as held:
            return _swept(config, held, warnings, dry_run=dry_run)
    except (errors.MapsaveError, OSError) as error:
        warnings.append(f"could not remove partial images without an owner: {error}")
        return []


def _swept(
    config: Config, held: store.Directory, warnings: list[str], *, dry_run: bool
) -> list[str]:
    spoken_of = journal_facts.partial_images(config.state)
    swept = []
    for name in sorted(os.listdir(held.fd)):
        path = os.path.join(held.path, name)
        if not partial_names.is_partial_name(name) or path in spoken_of:
            continue
        if not abandoned.is_abandoned(held.fd, name) or interrupted.is_kept(config, path):
            continue
        try:
            if not dry_run:
                os.unlink(name, dir_fd=held.fd)
        except OSError as error:
            warnings.append(f"cannot remove the partial image {path!r}: {error.strerror}")
        else:
            swept.append(path)
    return swept
