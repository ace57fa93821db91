"""A recovered operation returns what an undisturbed one does."""

from pathlib import Path

from mapsave.image import store
from mapsave.operations import recover_result

from tests.kit import cli
from tests.kit.emulated import emulated

LINE = {"image": "/images/one", "guest": "web", "monitor": None, "outcome": "image committed"}


def test_save_and_restore(site: cli.Site, tmp_path: Path) -> None:
    site.add_guest("web", tmp_path / "s")
    with emulated(tmp_path / "s"):
        saved = site.run("save", "web", "--json", check=0).json()
    with store.directory(site.images) as held:
        (entry,) = store.entries(held)
    recovered = recover_result.save(entry).as_dict()
    assert recovered.keys() == saved.keys() == recover_result.gone(LINE).as_dict().keys()
    assert (saved["recovered"], recovered["recovered"]) == (False, True)
    differs = {key for key in saved if saved[key] != recovered[key]}
    assert differs <= {"recovered", "phases", "reasons", "duration_s", "downtime_s", "bytes_per_s"}

    with emulated(tmp_path / "d", "--incoming", "defer") as waiting:
        arguments = ("restore", saved["image"], "--into", f"qmp:{waiting.path}", "--json")
        restored = site.run(*arguments, check=0).json()
    assert recover_result.restore(entry, None, None).as_dict().keys() == restored.keys()
