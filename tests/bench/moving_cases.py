"""Images as archives: beside zstd itself, and as fast encrypted as a disk writes."""

from collections.abc import Iterator
from pathlib import Path

from mapsave.archive import libraries

from tests.bench import cases, measure
from tests.bench.cases import MB, Bench, Row
from tests.bench.measure import Run
from tests.kit import cache, tree

_ZSTD = 1 / 0.8  # of the time of zstd itself, at most
_ENCRYPTED = 0.5  # GB/s
_PEAK = 250 * MB  # zstd takes some for each processor


def rows(bench: Bench, path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of an image; archives go to /dev/null, for each of the ways."""
    age = libraries.age()
    recipient = str(age.x25519.Identity.generate().to_public())
    ways = {
        "zstd": lambda: _archived(path, ["zstd", "-T0", "-q", "-c", str(path)]),
        "export": lambda: _archived(path, _export(bench, path)),
        "age": lambda: _archived(path, _export(bench, path, "-r", recipient)),
    }
    series = measure.in_turn(bench.rounds, ways)
    what = f"export, {name}; peer: zstd -T0"
    yield cases.compared(what, series["export"], series["zstd"], _ZSTD)
    rate = path.stat().st_blocks * 512 / series["age"].seconds / 10**9
    shown, target = f"{rate:.2f} GB/s", f">= {_ENCRYPTED} GB/s"
    yield Row("    encrypted", shown, "", "", target, rate >= _ENCRYPTED)
    yield cases.peak("export of it, encrypted", series["age"], _PEAK)
    archive, back = bench.site.image("archive"), bench.site.image("back")
    config = bench.site.config
    cases.run_mapsave(config, "export", str(path), "-o", str(archive))

    def imported() -> Run:
        back.unlink(missing_ok=True)
        cache.evict(archive)
        return cases.run_mapsave(config, "import", str(archive), "-o", str(back))

    importing = measure.repeated(bench.rounds, imported)
    yield Row(f"import, {name}", f"{importing.seconds:.3f} s")
    yield cases.peak("import of it", importing, _PEAK)
    archive.unlink()
    back.unlink()


def _export(bench: Bench, path: Path, *options: str) -> list[str]:
    config = ["--config", str(bench.site.config), "--quiet"]
    return [*measure.MAPSAVE, *config, "export", str(path), "-o", "-", *options]


def _archived(path: Path, command: list[str]) -> Run:
    cache.evict(path)
    return measure.run(["sh", "-c", 'exec "$@" >/dev/null', "sh", *command], tree.ROOT)
