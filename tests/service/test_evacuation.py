"""``save-all`` and ``restore-all`` through the service: an operation for each guest."""

import json
import signal

from tests.kit import cli, service, wait

GUESTS = ("small", "large")


def test_all_guests_are_saved_and_come_back_by_the_service(site: cli.Site) -> None:
    for name, memory in zip(GUESTS, ("8M", "16M"), strict=True):
        site.add_guest(name, emulator={"memory": memory})
    with service.running(site) as mapsaved:
        for name in GUESTS:  # starts them
            mapsaved.done(kind="check", guest=name)
        saved = site.run("save-all", "--deadline", "2m", "--json", check=0).json()
        assert [line["guest"] for line in saved["guests"]] == ["small", "large"]
        assert saved["saved"] == 2
        assert "save-all" in site.run("ps", "--all", check=0).stdout

        back = site.run("restore-all", "--json", check=0).json()
        assert back["restored"] == 2
        for name in GUESTS:
            of_it = mapsaved.get(f"/v1/operations?guest={name}")["operations"]
            assert [each["kind"] for each in of_it] == ["restore", "save", "check"]
            parents = [each["parent"] for each in of_it[:2]]
            kinds = [mapsaved.get(f"/v1/operations/{each}")["kind"] for each in parents]
            assert kinds == ["restore-all", "save-all"]


def test_interrupted_save_all_tells_who_is_in_an_image(site: cli.Site) -> None:
    """One after the other: the second is under way, and put back, when the command is told."""
    site.add_guest("first", emulator={"memory": "8M"}, priority=1)
    site.add_guest("second", emulator={"memory": "8M"})
    site.settings["hooks"] = {"directory": str(site.directory / "hooks"), "before_save": ["wait"]}
    site.write()
    hooks = site.directory / "hooks"
    hooks.mkdir(mode=0o755)
    waits = hooks / "wait"
    waits.write_text('#!/bin/sh\n[ "$MAPSAVE_GUEST" = first ] || sleep 60\n')
    waits.chmod(0o755)
    with service.running(site) as mapsaved:
        for name in ("first", "second"):
            mapsaved.done(kind="check", guest=name)
        with site.start("save-all", "--parallel", "1", "--json") as process:
            wait.until(
                lambda: mapsaved.get("/v1/operations?guest=second&kind=save&state=running")[
                    "operations"
                ],
                what="save of the second",
            )
            process.send_signal(signal.SIGINT)
            stdout, _ = process.communicate(timeout=60)
        assert process.returncode == 9
        error = json.loads(stdout)["error"]
        assert error["data"]["saved"] == ["first"]
        assert site.run("restore-all", "--json", check=0).json()["restored"] == 1
