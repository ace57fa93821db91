"""What the scheduler makes of jobs: tasks, in the right order, within windows, and once."""

import datetime

import pytest
from mapsave import errors
from mapsave.fleet import leading as terms
from mapsave.fleet import naming, tidying

from tests.fleet.scheduling import HOSTS, agents, leading, parsed
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet

WEB = HOSTS + 'jobs: {web: {guests: ["web*@rack1-*"], priority: 3, timeout: 10m,'
PLAIN = WEB + " save: {then: resume, note: n}}}\n"
DAILY = WEB + ' schedule: {cron: "0 2 * * *", time_zone: UTC}'


async def test_hosts_and_targets_are_what_the_file_says(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a", "rack1-b", "rack9-a"), leading(fleet) as lead:
        query = "SELECT name, saves, target FROM hosts ORDER BY name"
        assert await lead.rows(query) == [
            ("rack1-a", 1, "nas1"),
            ("rack1-b", 2, "nas1"),
            ("rack9-a", 0, None),
        ]
        targets = "SELECT name, saves, bandwidth FROM targets ORDER BY name"
        assert await lead.rows(targets) == [("nas1", 2, None), ("nas2", 1, 1 << 30)]
        assert await lead.apply() == 0
        lead.settings = parsed(fleet, HOSTS.replace("nas1", "nas3").replace("saves: 3", "saves: 4"))
        assert await lead.apply() > 0
        assert await lead.rows(query) == [
            ("rack1-a", 1, "nas3"),
            ("rack1-b", 2, "nas3"),
            ("rack9-a", 0, None),
        ]
        await lead.apply()
        assert await lead.rows(targets) == [("nas2", 1, 1 << 30), ("nas3", 2, None)]


async def test_tasks_move_to_the_target_that_their_host_gets(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a") as host, leading(fleet, PLAIN) as lead:
        await lead.run("web")
        args = await host["rack1-a"].fetch()
        assert args is not None
        assert await host["rack1-a"].slot(args["task"]) == "taken"
        lead.settings = parsed(fleet, PLAIN.replace("nas1", "nas3"))
        await lead.apply()
        # What holds a slot of the old one keeps it.
        assert await lead.rows("SELECT guest, target FROM tasks ORDER BY guest") == [
            ("web01", "nas1"),
            ("web02", "nas3"),
        ]
        assert await lead.rows("SELECT name, saves FROM targets ORDER BY name") == [
            ("nas1", 0),
            ("nas2", 1),
            ("nas3", 2),
        ]


async def test_a_run_has_a_task_for_each_guest_that_its_patterns_mean(fleet: Fleet) -> None:
    async with (
        agents(fleet, "rack1-a", "rack1-b", "rack2-a") as hosts,
        leading(fleet, PLAIN) as lead,
    ):
        made = await lead.run("web")
        assert (made.tasks, made.left_out, made.why) == (4, 0, None)
        assert await lead.tasks() == [
            ("rack1-a", "web01", "todo"),
            ("rack1-a", "web02", "todo"),
            ("rack1-b", "web01", "todo"),
            ("rack1-b", "web02", "todo"),
        ]
        args = await hosts["rack1-b"].fetch()
        assert args is not None
        save = args["request"]["save"]
        image = save.pop("image")
        assert image.startswith("web01-20")
        assert args["request"] == {
            "kind": "save",
            "guest": "web01",
            "save": {"then": "resume", "note": "n", "timeout": 600.0},
        }
        assert {key: args[key] for key in ("run", "target", "not_after", "limit_s")} == {
            "run": made.run,
            "target": "nas1",
            "not_after": None,
            "limit_s": 600,
        }
        (row,) = await lead.rows(
            "SELECT t.image, t.operation, t.uuid, t.priority, j.lock, j.priority AS jobs "
            "FROM tasks t JOIN procrastinate_jobs j ON j.id = t.job_id WHERE j.status = 'doing'"
        )
        operation = naming.operation_of(row[2])
        assert row[:2] == (image, operation)
        assert str(row[2]) == args["task"]
        assert row[3:] == (3, "rack1-b/web01", 3)


async def test_guests_that_get_no_task_are_counted_with_the_reason(fleet: Fleet) -> None:
    everything = HOSTS + "jobs: {all: {guests: ['*']}, web: {guests: ['web01']}}\n"
    async with (
        agents(fleet, "rack1-a", "rack1-b", "rack9-a") as hosts,
        leading(fleet, everything) as lead,
    ):
        await hosts["rack1-b"].lists(["off"], state="not running")
        await hosts["rack9-a"].lists(["homeless"])
        await hosts["rack1-a"].lists(["web01", "web02", "libvirt:domain"])
        assert (await lead.run("web")).tasks == 1
        made = await lead.run("all")
        assert (made.tasks, made.left_out) == (1, 4)
        assert made.why == (
            "1 not in the configuration of their host, 1 not running, 1 of a host that fleet.yaml "
            "does not name, 1 with a save that is not finished"
        )
        assert (await lead.tasks())[1:] == [("rack1-a", "web02", "todo")]


async def test_tasks_of_a_higher_priority_go_first(fleet: Fleet) -> None:
    jobs = HOSTS + "jobs: {low: {guests: [db01]}, high: {guests: [web01], priority: 1}}\n"
    async with agents(fleet, "rack1-a") as hosts, leading(fleet, jobs) as lead:
        await lead.run("low")
        await lead.run("high")
        order = [(await hosts["rack1-a"].work())["request"]["guest"] for _ in range(2)]
        assert order == ["web01", "db01"]
        assert await hosts["rack1-a"].fetch() is None


async def test_a_missed_run_is_made_up_for_once(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a") as hosts, leading(fleet, DAILY + "}}\n") as lead:
        assert await lead.due() == 0  # it counts from now on
        assert await lead.due() == 0
        await lead.connection.execute("UPDATE job_clock SET last_due = now() - interval '9 days'")
        assert await lead.due() == 1
        assert await lead.due() == 0
        assert len(await lead.tasks()) == 2
        (row,) = await lead.rows("SELECT due, kind, job, now() - due FROM runs")
        assert row[1:3] == ("run", "web")
        assert (row[0].hour, row[0].minute) == (2, 0)
        assert row[3] > datetime.timedelta(days=7)
        # A run while the one before is not finished: its guests get no second task.
        await lead.connection.execute("UPDATE job_clock SET last_due = now() - interval '2 days'")
        assert await lead.due() == 1
        assert (await lead.rows("SELECT why FROM runs ORDER BY id"))[1] == (
            "2 with a save that is not finished",
        )
        await hosts["rack1-a"].work()


async def test_what_is_not_to_be_made_up_for_is_skipped(fleet: Fleet) -> None:
    text = DAILY.replace("UTC", "UTC, persistent: no") + "}}\n"
    async with agents(fleet, "rack1-a"), leading(fleet, text) as lead:
        await lead.due()
        await lead.connection.execute("UPDATE job_clock SET last_due = now() - interval '9 days'")
        assert await lead.due() == 0
        assert await lead.rows("SELECT FROM runs") == []
        (late,) = await lead.rows("SELECT now() - last_due < interval '2 days' FROM job_clock")
        assert late == (True,)


async def test_a_schedule_that_was_changed_has_missed_nothing(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a"), leading(fleet, DAILY + "}}\n") as lead:
        await lead.due()
        await lead.connection.execute("UPDATE job_clock SET last_due = now() - interval '9 days'")
        lead.settings = parsed(fleet, DAILY.replace("0 2", "5 2") + "}}\n")
        assert await lead.due() == 0
        assert await lead.due() == 0
        lead.settings = parsed(fleet, PLAIN)  # without schedule
        assert await lead.due() == 0
        assert await lead.rows("SELECT FROM job_clock") == []


async def test_a_clock_that_was_set_back_keeps_no_job_from_running(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a"), leading(fleet, DAILY + "}}\n") as lead:
        await lead.due()
        await lead.connection.execute("UPDATE job_clock SET last_due = now() + interval '1 year'")
        assert await lead.due() == 0
        (row,) = await lead.rows("SELECT last_due <= clock_timestamp() FROM job_clock")
        assert row == (True,)


async def test_saves_of_a_scheduled_run_begin_in_the_window(fleet: Fleet) -> None:
    now = datetime.datetime.now(datetime.UTC)
    opens, closes = now + datetime.timedelta(hours=2), now + datetime.timedelta(hours=4)
    window = f", window: '{opens:%H:%M}-{closes:%H:%M}'}}}}\n"
    async with agents(fleet, "rack1-a") as hosts, leading(fleet, DAILY + window) as lead:
        await lead.due()
        await lead.connection.execute("UPDATE job_clock SET last_due = now() - interval '9 days'")
        assert await lead.due() == 1
        rows = await lead.rows(
            "SELECT j.scheduled_at, t.not_after FROM tasks t "
            "JOIN procrastinate_jobs j ON j.id = t.job_id"
        )
        wanted = tuple(each.replace(second=0, microsecond=0) for each in (opens, closes))
        assert rows == [wanted, wanted]
        assert await hosts["rack1-a"].fetch() is None
        # It opens, and closes while one task is queued and the agent has fetched the other.
        await lead.connection.execute("UPDATE procrastinate_jobs SET scheduled_at = now()")
        args = await hosts["rack1-a"].fetch()
        assert args is not None
        await lead.connection.execute("UPDATE tasks SET not_after = now() - interval '1 s'")
        assert await hosts["rack1-a"].slot(args["task"]) == "over"
        await lead.tidy()
        assert [row[2] for row in await lead.tasks()] == ["doing", "cancelled"]
        (row,) = await lead.rows("SELECT outcome FROM tasks WHERE outcome IS NOT NULL")
        assert row == ({"message": "the window or the deadline is over"},)
        # By hand it runs at once.
        await hosts["rack1-a"].report(args["task"], "failed")
        assert (await lead.run("web")).tasks == 2
        assert await hosts["rack1-a"].fetch() is not None


async def test_after_max_failures_the_rest_of_the_run_is_cancelled(fleet: Fleet) -> None:
    text = WEB + " max_failures: 2}}\n"
    async with agents(fleet, "rack1-a", "rack1-b") as hosts, leading(fleet, text) as lead:
        made = await lead.run("web")
        await hosts["rack1-a"].work("failed", error={"message": "no"})
        assert [row[2] for row in await lead.tasks()].count("todo") == 3
        await hosts["rack1-b"].work("failed")
        await lead.tidy()
        assert sorted(row[2] for row in await lead.tasks()) == [
            *("cancelled", "cancelled"),
            *("failed", "failed"),
        ]
        (row,) = await lead.rows("SELECT id, failed, cancelled, counts FROM runs")
        assert row == (made.run, 2, True, {"cancelled": 2, "failed": 2})


async def test_runs_end_and_are_forgotten_when_they_are_old(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a") as hosts, leading(fleet, PLAIN) as lead:
        made = await lead.run("web")
        await lead.tidy()
        assert await lead.rows("SELECT ended, counts FROM runs") == [(None, None)]
        for _ in range(2):
            await hosts["rack1-a"].work()
        await lead.tidy()
        (row,) = await lead.rows("SELECT ended IS NOT NULL, counts FROM runs")
        assert row == (True, {"succeeded": 2})
        await lead.run("web")  # which is not finished
        await lead.connection.execute("UPDATE runs SET ended = ended - interval '10 days'")
        async with lead.term.transaction() as connection:
            assert await tidying.forget(connection, 11 * 86400) == 0
            assert await tidying.forget(connection, 9 * 86400) == 1
        assert [row[0] for row in await lead.rows("SELECT id FROM runs")] == [made.run + 1]
        assert len(await lead.tasks()) == 2


@pytest.mark.parametrize("state", ["todo", "doing", "slot", "ended"])
async def test_tasks_of_a_host_that_is_gone_are_settled(fleet: Fleet, state: str) -> None:
    async with agents(fleet, "rack1-a") as hosts, leading(fleet, PLAIN) as lead:
        await lead.run("web")
        if state != "todo":
            args = await hosts["rack1-a"].fetch()
            assert args is not None
        if state in ("slot", "ended"):
            assert await hosts["rack1-a"].slot(args["task"]) == "taken"
        if state == "ended":
            assert await hosts["rack1-a"].report(args["task"])
        await lead.connection.execute("DELETE FROM hosts")
        await lead.tidy()
        first = {"todo": "cancelled", "doing": "failed", "slot": "doing", "ended": "succeeded"}
        assert [row[2] for row in await lead.tasks()] == [first[state], "cancelled"]
        if state == "slot":
            # The host may still write: the slot is kept until its limits have run out.
            past = "now() - interval '1 s'"
            await lead.connection.execute(f"UPDATE slots SET lease_until = {past}")
            await lead.tidy()
            assert len(await lead.rows("SELECT FROM slots")) == 1
            await lead.connection.execute(f"UPDATE slots SET limit_until = {past}")
            await lead.tidy()
            await lead.tidy()
            assert await lead.rows("SELECT FROM slots") == []
            assert [row[2] for row in await lead.tasks()] == ["failed", "cancelled"]


async def test_tasks_of_a_host_that_the_file_does_not_name_are_cancelled(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a"), leading(fleet, PLAIN) as lead:
        await lead.run("web")
        lead.settings = parsed(fleet, "targets: {nas1: {saves: 2}}\n")
        await lead.apply()
        await lead.tidy()
        assert {row[2] for row in await lead.tasks()} == {"cancelled"}


async def test_what_a_former_leader_writes_fails(fleet: Fleet) -> None:
    async with agents(fleet, "rack1-a"), leading(fleet, PLAIN) as lead:
        async with fleet.owner() as other:
            await terms.begin_term(other)
        with pytest.raises(errors.NotLeading):
            await lead.run("web")
        assert await lead.tasks() == []


async def test_one_has_the_lock_until_its_connection_ends(fleet: Fleet) -> None:
    async with fleet.owner() as second, fleet.owner() as first:
        async with terms.lock(first) as is_held:
            assert is_held
            async with terms.lock(second) as is_second:
                assert not is_second
            assert await kit.one(second, "SELECT count(*) FROM leader") == 0
        async with terms.lock(second) as is_second:
            assert is_second
        async with terms.lock(first) as is_held:
            assert is_held
            pid = first.info.backend_pid
            await second.execute(f"SELECT pg_terminate_backend({pid})")
            with pytest.raises(errors.NotLeading):
                await terms.hold(first)


async def test_the_newest_evacuation_of_a_host_is_not_forgotten(fleet: Fleet) -> None:
    async with leading(fleet) as lead:
        await lead.connection.execute(
            "INSERT INTO runs (kind, host, ended) SELECT kind, host, now() - interval '10 days' "
            "FROM (VALUES ('evacuate', 'a'), ('return', 'a'), ('evacuate', 'a'), ('evacuate', 'b'))"
            " AS w (kind, host)"
        )
        for _ in range(3):
            async with lead.term.transaction() as connection:
                await tidying.forget(connection, 9 * 86400)
        kept = await lead.rows("SELECT id, kind, host FROM runs ORDER BY id")
        assert kept == [(3, "evacuate", "a"), (4, "evacuate", "b")]
