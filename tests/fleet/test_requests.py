"""What people ask for: what fleet.yaml allows them, evacuations and the way back, cancelling."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from mapsave.fleet import database
from mapsave.fleet.database import Connection

from tests.fleet.scheduling import HOSTS, Lead, agents, leading
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet

JOBS = HOSTS + "jobs: {web: {guests: ['web*']}, nightly: {guests: ['*'], priority: 9}}\n"


@contextlib.asynccontextmanager
async def person(fleet: Fleet, name: str) -> AsyncIterator[Connection]:
    """Connect as a person."""
    async with database.connected(await fleet.add_person(name), "person") as connection:
        yield connection


async def asked(lead: Lead, connection: Connection, kind: str, **what: Any) -> dict[str, Any]:
    """Return what the scheduler answers to a request."""
    query = "INSERT INTO requests (kind, what) VALUES (%s, %s) RETURNING id"
    number = await kit.one(connection, query, kind, json.dumps(what))
    assert await lead.answer() == 1
    answer: dict[str, Any] = await kit.one(
        connection, "SELECT answer FROM requests WHERE id = %s", number
    )
    return answer


async def test_people_may_run_what_the_file_allows_them(fleet: Fleet) -> None:
    role = f"{fleet.name}_alice"
    text = JOBS + f"may: {{{role}: {{run: ['web*'], evacuate: ['rack1-b']}}}}\n"
    async with (
        agents(fleet, "rack1-a", "rack1-b"),
        leading(fleet, text) as lead,
        person(fleet, role) as alice,
        fleet.owner() as owner,
    ):
        found = await asked(lead, alice, "run", job="web")
        assert (found["tasks"], found["left_out"]) == (4, 0)
        assert await lead.rows("SELECT requested_by, job FROM runs") == [(role, "web")]
        for kind, what in (
            ("run", {"job": "nightly"}),
            ("run", {"job": "webs"}),
            ("evacuate", {"host": "rack1-a"}),
            ("return", {"host": "rack1-b"}),
        ):
            refused = (await asked(lead, alice, kind, **what))["error"]
            if what == {"job": "webs"}:  # which is hers to ask for, but is not there
                assert (refused["id"], refused["hint"]) == ("job.unknown", "did you mean 'web'?")
            else:
                assert (refused["id"], refused["exit_code"]) == ("fleet.forbidden", 7)
                assert repr(role) in refused["message"]
        assert "run" in await asked(lead, alice, "evacuate", host="rack1-b")
        assert "run" in await asked(lead, owner, "run", job="nightly")
        assert len(await lead.rows("SELECT FROM runs")) == 3


async def test_requests_that_make_no_sense_are_refused(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a"), leading(fleet, JOBS) as lead, fleet.owner() as owner:
        for kind, what, error in (
            ("reboot", {}, "request.invalid"),
            ("run", {}, "request.invalid"),
            ("run", {"job": "web", "more": 1}, "request.invalid"),
            ("run", {"job": "wep"}, "job.unknown"),
            ("evacuate", {"host": "rack7"}, "fleet.host_unknown"),
            ("return", {"host": "rack7"}, "fleet.host_unknown"),
            ("cancel", {}, "request.invalid"),
            ("cancel", {"run": 99}, "fleet.run_unknown"),
            ("cancel", {"task": "0123456789ab"}, "fleet.run_unknown"),
        ):
            assert (await asked(lead, owner, kind, **what))["error"]["id"] == error, (kind, what)
        assert await lead.rows("SELECT FROM runs") == []


async def test_a_request_that_no_scheduler_answered_in_time_is_void(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a"), leading(fleet, JOBS) as lead, fleet.owner() as owner:
        await owner.execute(
            "INSERT INTO requests (kind, what, created) "
            "VALUES ('run', '{\"job\": \"web\"}', now() - interval '2 minutes')"
        )
        await lead.answer()
        (answer,) = await lead.rows("SELECT answer FROM requests")
        assert answer[0]["error"]["id"] == "fleet.no_scheduler"
        assert await lead.tasks() == []


async def test_evacuation_and_return(fleet: Fleet) -> None:
    async with (
        agents(fleet, "rack1-a", "rack1-b") as hosts,
        leading(fleet, JOBS) as lead,
        fleet.owner() as owner,
    ):
        host = hosts["rack1-a"]
        nightly = await asked(lead, owner, "run", job="nightly")
        begun = await host.fetch()
        assert begun is not None
        assert begun["request"]["guest"] == "db01"
        evacuation = await asked(lead, owner, "evacuate", host="rack1-a", deadline_s=600)
        assert evacuation["tasks"] == 3
        superseded = await lead.rows(
            "SELECT t.guest, t.outcome FROM tasks t JOIN procrastinate_jobs j ON j.id = t.job_id "
            "WHERE t.run = %s AND j.status = 'cancelled' ORDER BY t.guest",
            nightly["run"],
        )
        why = {"message": f"superseded by the evacuation {evacuation['run']}"}
        assert superseded == [("web01", why), ("web02", why)]
        # The guest whose save is under way waits for its end.
        saved = [await host.work(image="web01.img"), await host.work(image="web02.img")]
        assert await host.fetch() is None
        await host.report(begun["task"])
        saved.append(await host.work("failed", error={"message": "no"}))
        assert [each["request"]["guest"] for each in saved] == ["web01", "web02", "db01"]
        assert {each["request"]["save"]["then"] for each in saved} == {"quit"}
        assert {each["limit_s"] for each in saved} == {600}
        assert None not in {each["not_after"] for each in saved}
        # web02 was restored by hand in the meantime.
        images = {"web01.img": {"guest": "web01", "state": "saved"}}
        images["web02.img"] = {"guest": "web02", "state": "restored"}
        await host.lists(["db01"], images)
        back = await asked(lead, owner, "return", host="rack1-a")
        assert (back["tasks"], back["left_out"], back["why"]) == (1, 1, "1 restored already")
        restore = await host.work()
        assert restore["request"] == {
            "kind": "restore",
            "image": "web01.img",
            "restore": {"timeout": 3600.0},
        }
        assert (await asked(lead, owner, "return", host="rack1-a"))["tasks"] == 0
        assert (await asked(lead, owner, "return", host="rack1-b"))["tasks"] == 0


async def test_an_image_that_could_not_be_restored_is_returned_again(fleet: Fleet) -> None:
    async with (
        agents(fleet, "rack1-a") as hosts,
        leading(fleet, JOBS) as lead,
        fleet.owner() as owner,
    ):
        host = hosts["rack1-a"]
        await host.lists(["web01"])
        await asked(lead, owner, "evacuate", host="rack1-a")
        await host.work()
        assert (await asked(lead, owner, "return", host="rack1-a"))["tasks"] == 1
        again = await asked(lead, owner, "return", host="rack1-a")
        assert again["why"] == "1 with a restore that is not finished"
        await host.work("failed")
        assert (await asked(lead, owner, "return", host="rack1-a"))["tasks"] == 1
        await host.work()
        assert (await asked(lead, owner, "return", host="rack1-a"))["tasks"] == 0


async def test_cancel(fleet: Fleet) -> None:
    role, other = f"{fleet.name}_alice", f"{fleet.name}_bob"
    text = JOBS + f"may: {{{role}: {{run: [web]}}, {other}: {{cancel: true}}}}\n"
    async with (
        agents(fleet, "rack1-a", "rack1-b") as hosts,
        leading(fleet, text) as lead,
        person(fleet, role) as alice,
        person(fleet, other) as bob,
        fleet.owner() as owner,
    ):
        own = await asked(lead, alice, "run", job="web")
        begun = await hosts["rack1-a"].fetch()
        assert begun is not None
        assert await hosts["rack1-a"].slot(begun["task"]) == "taken"
        renew = "SELECT renew(%s, '{}')"
        assert not await kit.one(hosts["rack1-a"].connection, renew, begun["task"])
        done = await asked(lead, alice, "cancel", run=own["run"])
        assert done == {"run": own["run"], "cancelled": 3, "asked": 1}
        assert await kit.one(hosts["rack1-a"].connection, renew, begun["task"])
        await hosts["rack1-a"].report(begun["task"], "aborted")
        assert sorted({row[2] for row in await lead.tasks()}) == ["aborted", "cancelled"]
        # What is another's needs leave, for a single task too.
        made = await asked(lead, owner, "run", job="nightly")
        (row,) = await lead.rows("SELECT operation FROM tasks WHERE run = %s LIMIT 1", made["run"])
        for what in ({"run": made["run"]}, {"task": row[0]}):
            assert (await asked(lead, alice, "cancel", **what))["error"]["id"] == "fleet.forbidden"
        done = await asked(lead, bob, "cancel", task=row[0])
        assert done == {"run": made["run"], "cancelled": 1, "asked": 0}
        assert (await asked(lead, bob, "cancel", run=made["run"]))["cancelled"] == 5
