"""The record: replaced whole, never read wrong, and only one at it."""

import json
import stat
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.evacuation import record
from mapsave.evacuation.record import Entry
from msgspec import structs

ONE = Entry("web", "/images/web.mapsave", True, 3, "uuid-1", 17.5)
TWO = Entry("db", "/images/db.mapsave", False)


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    with record.hold(tmp_path) as kept:
        kept.plan([ONE, TWO])
        await kept.write()
    assert record.load(tmp_path).entries == (ONE, TWO)
    path = tmp_path / record.NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = json.loads(path.read_text())
    assert found["guests"][0] == {
        "guest": "web",
        "image": "/images/web.mapsave",
        "ran": True,
        "priority": 3,
        "uuid": "uuid-1",
        "time": 17.5,
    }
    assert [each.is_committed for each in record.load(tmp_path).entries] == [True, False]


async def test_the_empty_one_is_no_file(tmp_path: Path) -> None:
    assert record.load(tmp_path).entries == ()
    with record.hold(tmp_path) as kept:
        kept.plan([ONE, TWO])
        await kept.write()
        kept.drop(ONE)
        kept.forget({"db"})
        await kept.write()
    assert not (tmp_path / record.NAME).exists()
    assert record.load(tmp_path).entries == ()


async def test_the_last_version_survives_a_write_that_fails(tmp_path: Path) -> None:
    with record.hold(tmp_path) as kept:
        kept.plan([ONE])
        await kept.write()
        (tmp_path / f"{record.NAME}.new").mkdir()
        kept.plan([TWO])
        with pytest.raises(OSError, match="Is a directory"):
            await kept.write()
    assert record.load(tmp_path).entries == (ONE,)


def test_only_one_has_it(tmp_path: Path) -> None:
    with record.hold(tmp_path), pytest.raises(errors.Busy), record.hold(tmp_path):
        pass


def test_what_was_not_saved_is_tidied_away(tmp_path: Path) -> None:
    there, partial, gone = (tmp_path / name for name in ("a", "b", "c"))
    there.touch()
    Path(f"{partial}.partial").touch()
    planned = [Entry(path.name, str(path), True) for path in (there, partial, gone)]
    kept = record.Record(tmp_path / record.NAME, (ONE, *planned))
    kept.tidy()
    assert [each.guest for each in kept.entries] == ["web", "a", "b"]


_GOOD = structs.asdict(ONE)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param('{"version": 1, "guests": [', id="torn"),
        pytest.param("[]", id="a list"),
        pytest.param('{"version": 2, "guests": []}', id="newer"),
        pytest.param('{"version": 1}', id="no guests"),
        pytest.param('{"version": 1, "guests": [{"guest": "a"}]}', id="no image"),
        pytest.param(json.dumps({"version": 1, "guests": [{**_GOOD, "more": 1}]}), id="more"),
        pytest.param(json.dumps({"version": 1, "guests": [{**_GOOD, "image": 1}]}), id="a number"),
        pytest.param(
            json.dumps({"version": 1, "guests": [{**_GOOD, "priority": "a"}]}), id="words"
        ),
        pytest.param(json.dumps({"version": 1, "guests": [{**_GOOD, "time": "a"}]}), id="no time"),
        pytest.param("[" * 100_000, id="nested"),
        pytest.param("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), id="noise"),
    ],
)
def test_what_is_no_record_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / record.NAME
    path.write_text(content)
    with pytest.raises(errors.Refused, match=r"save-all\.json"):
        record.load(tmp_path)
    with pytest.raises(errors.Refused), record.hold(tmp_path):
        pass
    assert path.read_text() == content
    with record.hold(tmp_path, set_aside=True) as kept:
        assert kept.entries == ()
    assert Path(f"{path}.unreadable").read_text() == content


def test_a_directory_in_its_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / record.NAME).mkdir()
    with pytest.raises(errors.Refused):
        record.load(tmp_path)
    with record.hold(tmp_path, set_aside=True) as kept:
        assert kept.entries == ()
    (aside,) = tmp_path.glob(f"{record.NAME}.unreadable*")
    assert aside.is_dir()
