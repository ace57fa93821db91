"""Run seeds side by side, print what must not be, and a summary by kind of fault."""

import collections
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from tests.campaign import kinds
from tests.campaign.run import Outcome, run
from tests.kit import inject, libvirtd, processes
from tests.kit.libvirtd import Daemon


def work(seeds: Iterable[int], kind: str | None, *, keep: bool, verbose: bool) -> None:
    """Run seeds one after another; print a JSON object for each, and in words if ``verbose``."""
    with ExitStack() as stack:
        found: list[Daemon] = []

        def daemon() -> Daemon:
            if not found:
                found.append(stack.enter_context(libvirtd.running()))
            return found[0]

        for seed in seeds:
            outcome = run(kinds.plan_of(seed, kind), daemon, keep=keep)
            if verbose:
                _verbose(outcome)
            print(json.dumps(_record(outcome)), flush=True)


def _record(outcome: Outcome) -> dict[str, object]:
    return {
        "seed": outcome.plan.seed,
        "kind": outcome.plan.kind,
        "seconds": round(outcome.seconds, 2),
        "met": outcome.met,
        "violations": outcome.violations,
        "plan": outcome.plan.lines(),
    }


def _verbose(outcome: Outcome) -> None:
    words = [*outcome.plan.lines(), *(f"  {line}" for line in outcome.trace)]
    words += [f"kept in {outcome.kept}"] if outcome.kept else []
    print("\n".join(words), file=sys.stderr, flush=True)


def campaign(
    seeds: list[int], kind: str | None, jobs: int, *, keep: bool, verbose: bool
) -> list[dict[str, object]]:
    """Run seeds in ``jobs`` processes; print violations as they come; return all records."""
    inject.library()  # fails here rather than in every run
    records: list[dict[str, object]] = []
    begun = time.monotonic()
    jobs = max(1, min(jobs, len(seeds)))
    with ExitStack() as stack:
        threads = []
        for number in range(jobs):
            words = [sys.executable, "-m", "tests.campaign", "--worker"]
            words += ["--seeds", ",".join(map(str, seeds[number::jobs]))]
            words += ["--kind", kind] if kind else []
            words += ["--keep"] if keep else []
            words += ["--verbose"] if verbose else []
            worker = stack.enter_context(
                processes.running(words, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(_interrupt, worker)
            thread = threading.Thread(target=_collect, args=(worker, records))
            thread.start()
            threads.append((thread, worker))
        for thread, worker in threads:
            thread.join()
            if worker.wait() != 0:
                print(f"VIOLATION a worker ended with {worker.returncode}", flush=True)
                records.append(
                    {"kind": "campaign", "seconds": 0, "met": (), "violations": ["worker"]}
                )
    _summary(records, time.monotonic() - begun)
    return records


def _interrupt(worker: subprocess.Popen[str]) -> None:
    """Let a worker end its guests, if the campaign is told to stop."""
    if worker.poll() is None:
        worker.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            worker.wait(60)


def _collect(worker: subprocess.Popen[str], records: list[dict[str, object]]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        record = json.loads(line)
        records.append(record)
        for words in record["violations"]:
            print(
                f"VIOLATION seed {record['seed']} ({record['kind']}): {words} "
                f"[python -m tests.campaign --seeds {record['seed']} -v]",
                flush=True,
            )


def _summary(records: list[dict[str, object]], seconds: float) -> None:
    by_kind: dict[str, list[dict[str, object]]] = collections.defaultdict(list)
    for record in records:
        by_kind[str(record["kind"])].append(record)
    print(f"{'kind of fault':<18} {'runs':>5} {'met':>5} {'bad':>4} {'s each':>7}")
    for name in sorted(by_kind):
        found = by_kind[name]
        met = sum(bool(record["met"]) for record in found)
        bad = sum(bool(record["violations"]) for record in found)
        each = sum(float(str(record["seconds"])) for record in found) / len(found)
        print(f"{name:<18} {len(found):>5} {met:>5} {bad:>4} {each:>7.1f}")
    bad = sum(bool(record["violations"]) for record in records)
    print(f"{len(records)} seeds, {bad} with violations, {seconds:.0f} s", flush=True)
