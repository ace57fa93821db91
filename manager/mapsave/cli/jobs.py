"""``mapsave job run|check|prune|list``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mapsave import typed, units
from mapsave.cli import candidates, hosts, output, reporting
from mapsave.cli.options import Command, Globals, Group, no_wait, pass_globals
from mapsave.client import responses
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level

if TYPE_CHECKING:
    from mapsave.jobs.engine import Run
    from mapsave.jobs.retention import Pruned
    from mapsave.jobs.scrub import Scrubbed

_IMAGE = {  # what came of an image that was scrubbed, for people
    "damaged": "DAMAGED",
    "unreadable": "UNREADABLE",
    "without_digests": "no digests: structure only",
    "begun": "not finished",
}
_ENDED = {"timeout": "time was up", "limit": "as much was read as one run may"}


@click.group("job", cls=Group)
def command() -> None:
    """Run, check or list jobs, or remove the images that a save job does not keep.

    JOB is a YAML file, or the name of a job in the jobs directory ('jobs:' in the
    configuration). The service runs the jobs that it has loaded.
    """


@command.command("run", cls=Command)
@click.argument("job", metavar="JOB", shell_complete=candidates.JOBS)
@no_wait
@pass_globals
def run(given: Globals, /, job: str, no_wait: bool) -> int:
    """Run a job once: save its guests, in parallel as far as the job allows.

    A guest that fails does not stop the others. Exits with the worst code of all. Images that
    the job does not keep are removed afterwards.

    A job of kind 'scrub' verifies images instead, those first that have waited longest. Exits
    with 6 if one is damaged, once all were verified. What is not done when its time is up, or it
    is interrupted, the next run does.
    """
    host = hosts.choose(given, given.client_config(), job=job)
    if no_wait:
        output.begun(given, hosts.background(host).begin_job(job))
        return 0
    with reporting.reporting(given, "job", Path(job).stem) as report:
        done = host.run_job(job, report)
    output.result(given, {**done}, run_text(done))
    return int(done["exit_code"])


@command.command("check", cls=Command)
@click.argument("job", metavar="JOB", shell_complete=candidates.JOBS)
@pass_globals
def check(given: Globals, /, job: str) -> int:
    """Report what would fail, for the file and for each of its guests; nothing is touched.

    Of a job of kind 'scrub' report which images it would verify.
    """
    done = hosts.choose(given, given.client_config(), job=job).check_job(job)
    output.result(given, {**done}, check_text(done))
    return int(done["exit_code"])


@command.command("prune", cls=Command)
@click.argument("job", metavar="JOB", shell_complete=candidates.JOBS)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@click.option("--in-use", is_flag=True, help="Remove images that guests live on, too.")
@pass_globals
def prune(given: Globals, /, job: str, dry_run: bool, in_use: bool) -> int:
    """Remove the images that a job does not keep.

    Never removed are the newest good image of a guest, an image that is the only copy of its
    guest (saved with 'then: quit', not restored since, and with no later image of the guest), and
    damaged ones.
    """
    host = hosts.choose(given, given.client_config(), job=job)
    done, keeps_all = host.prune(job, dry_run=dry_run, in_use=in_use)
    output.result(given, done, prune_text(done, keeps_all=keeps_all))
    return int(done["exit_code"])


@command.command("list", cls=Command)
@pass_globals
def list_jobs(given: Globals, /) -> None:
    """List the jobs in the jobs directory, and the files that could not be loaded.

    Only the service knows when a job ran and when it runs next.
    """
    found = hosts.choose(given, given.client_config()).jobs()
    output.result(given, found, list_text(typed.convert(found, responses.Jobs)))


def run_text(done: Run | Scrubbed) -> str:
    """Return the summary of a job's run for people."""
    if done.get("kind") == "scrub":
        return scrub_text(cast("Scrubbed", done))
    return save_text(cast("Run", done))


def scrub_text(done: Scrubbed) -> str:
    """Return the summary of a scrub for people, with a line for each image that it looked at."""
    rows = []
    for line in done["images"]:
        what = _IMAGE.get(line["outcome"], line["outcome"])
        if line["outcome"] in ("damaged", "unreadable"):
            what = output.marked(Level.ERROR, what)
        read = units.format_size(line["read_bytes"])
        read += " (went on)" if line["resumed_at"] is not None else ""
        why = f": {output.described(line['error'])}" if line["error"] else ""
        rows.append((what, read, output.duration({**line}), os.path.basename(line["image"]) + why))
    whole = outcome.whole("job", {**done})
    assert whole is not None
    summary = f"job {done['job']}: {output.marked(whole.level, whole.words)}"
    if done["not_due"]:
        summary += f", {done['not_due']} not due yet"
    summary += f"; read {units.format_size(done['read_bytes'])}"
    if done["ended"] != "complete":
        summary += f"; {_ENDED[done['ended']]}, the next run goes on"
    table = [output.table(rows, ("outcome", "read", "time", "image"))] if rows else []
    return "\n".join([*table, summary])


def save_text(done: Run) -> str:
    """Return the summary of the run of a save job for people."""
    rows = []
    for each in done["guests"]:
        tries, saved = len(each.get("tries", ())), each["result"] or {}
        often = f" ({tries} tries)" if tries > 1 else ""
        if each["error"]:
            failed = output.marked(Level.ERROR, f"FAILED{often}")
            rows.append((each["guest"], failed, "", output.described(each["error"])))
        else:
            time, image = output.duration(saved), str(saved["image"])
            rows.append((each["guest"], f"saved{often}", time, image))
    whole = outcome.whole("job", {**done})
    assert whole is not None
    summary = f"job {done['job']}: {output.marked(whole.level, whole.words)}"
    if removed := sum(not line["kept"] for line in done["pruned"]):
        summary += f", {removed} old images removed"
    kept = [*(line["error"] for line in done["pruned"]), done["prune_error"]]
    told = [f"old images: {output.described(error)}" for error in kept if error]
    return "\n".join([output.table(rows, ("guest", "outcome", "time", "image")), *told, summary])


def prune_text(done: Pruned, *, keeps_all: bool) -> str:
    """Return for people what was, or would be, removed."""
    if keeps_all:
        return f"job {done['job']}: keeps all its images, because it has no 'keep:'"
    if not done["images"]:
        return f"job {done['job']}: no images"
    rows = []
    would = done["dry_run"]
    for line in done["images"]:
        what = "kept" if line["kept"] else "would go" if would else "removed"
        why = ", ".join(line["reasons"]) or "-"
        if line["error"]:
            what, why = output.marked(Level.ERROR, "FAILED"), output.described(line["error"])
        rows.append((line["guest"], what, Path(line["image"]).name, why))
    freed = units.format_size(done["freed_bytes"])
    removed = f"{done['removed']} {'would be removed' if would else 'removed'} ({freed})"
    summary = f"job {done['job']}: {done['kept']} kept, {removed}"
    return output.table(rows, ("guest", "outcome", "image", "why")) + "\n" + summary


def check_text(done: Run | Scrubbed) -> str:
    """Return the outcome of a job's check for people."""
    if done.get("kind") == "scrub":
        return _due_text(cast("Scrubbed", done))
    done = cast("Run", done)
    lines = [
        f"{each['guest']}: "
        + (
            f"{output.marked(Level.ERROR, 'FAIL')} {output.described(each['error'])}"
            if each["error"]
            else "can be saved"
        )
        for each in done["guests"]
    ]
    return "\n".join([*lines, f"job {done['job']}: {done['failed']} would fail"])


def _due_text(done: Scrubbed) -> str:
    lines = [
        f"{os.path.basename(line['image'])}: {output.verified(line['last'])}"
        for line in done["images"]
    ]
    summary = f"job {done['job']}: {done['left']} images are due, {done['not_due']} are not"
    return "\n".join([*lines, summary])


def list_text(found: responses.Jobs) -> str:
    """Return the jobs for people, what is wrong last."""
    lines = [table(found.jobs) if found.jobs else "no jobs"]
    invalid = output.marked(Level.ERROR, "INVALID")
    return "\n".join([*lines, *(f"{invalid}: {output.described(e.error)}" for e in found.broken)])


def table(jobs: list[responses.Job]) -> str:
    """Return a table of jobs for people."""
    header = ("job", "guests", "schedule", "last run", "next run", "file")
    rows = [
        (
            each.name,
            str(len(each.guests)) if each.kind == "save" else f"- ({each.kind})",
            str(each.schedule["cron"]) if each.schedule else "-",
            _last_run(each.last_run) if each.last_run else "-",
            units.format_time(each.next_run) if each.next_run else "-",
            each.file,
        )
        for each in jobs
    ]
    return output.table(rows, header)


def _last_run(last: responses.Operation) -> str:
    came_to = "" if last.error else output.came_to(last)
    return f"{units.format_time(last.created)} {output.state(last)}" + (
        f": {came_to}" if came_to else ""
    )
