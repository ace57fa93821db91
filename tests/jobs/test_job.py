"""Save jobs: what a job file says, which guests it means, what its images are called."""

import datetime
import json
import uuid
import zoneinfo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapsave import config, errors, keys
from mapsave.jobs import job, schedule, template
from msgspec import structs

from tests.kit.full import JOB

WHEN = datetime.datetime(
    2026, 3, 1, 0, 30, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
)


def configured(*names: str) -> config.Config:
    guests = {name: config.Guest(name, qmp=Path("/x")) for name in names}
    return config.Config(Path("/i"), Path("/s"), Path("/k"), Path("/j"), guests=guests)


def load(tmp_path: Path, text: str) -> job.Job:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return job.load(path)


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        load(tmp_path, text)
    return caught.value.message.removeprefix(f"{tmp_path}/")


def test_every_key_arrives(tmp_path: Path) -> None:
    loaded = load(tmp_path, JOB)
    assert loaded == job.Job(
        name="nightly-web",
        guests=("web01", "db*"),
        save=loaded.save,
        document=loaded.document,
        schedule=schedule.Schedule("30 2 * * mon-fri", "Europe/Berlin", False, 600.0),
        keep=job.Keep(last=3, daily=7),
        concurrency=2,
        timeout=900.0,
        retries=job.Retries(times=3, wait=90.0),
        own_hooks=job.JobHooks(("freeze",), ("thaw", "copy"), ("thaw",)),
    )
    assert loaded.given == {
        "then": "resume",
        "live": True,
        "format": "libvirt",
        "direct_io": "off",
        "zero_pages": "multifd",
        "channels": "auto",
        "preallocate": "on",
        "policy": "selinux-svirt",
    }
    assert loaded.save.replace
    assert loaded.save.in_use
    assert loaded.image == template.parse("{guest}-{time:%Y%m%dT%H%M%SZ}.mapsave")
    assert loaded.hooks == {
        "before_save": ("freeze",),
        "after_save": ("thaw", "copy"),
        "on_failure": ("thaw",),
    }
    assert loaded.zone is zoneinfo.ZoneInfo("Europe/Berlin")
    assert loaded.source == tmp_path / "job.yaml"


def test_least_job(tmp_path: Path) -> None:
    loaded = load(tmp_path, "job: j\nguests: [a]\n")
    assert loaded.settings(configured()) == config.SaveSettings()
    assert loaded.settings(configured()).then == "quit"
    assert (loaded.save.replace, loaded.concurrency, loaded.timeout) == (False, 1, None)
    assert (loaded.schedule, loaded.keep, loaded.hooks) == (None, None, {})
    assert loaded.retries.times == 0
    assert loaded.image_name("a", WHEN) == "a-20260228T223005Z.mapsave"


def test_a_schedule_may_be_its_times_alone(tmp_path: Path) -> None:
    alone = load(tmp_path, HEAD + "schedule: '@daily'")
    assert alone.schedule == schedule.Schedule("@daily", None, True, 0.0)
    assert load(tmp_path, HEAD + "schedule: {cron: '@daily'}").schedule == alone.schedule
    assert load(tmp_path, HEAD + "schedule: ~").schedule is None
    assert load(tmp_path, HEAD + "retries: {times: 2}").retries == job.Retries(2, 60.0)


def test_a_schedule_in_a_zone_that_the_host_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Mars/Olympus")
    with pytest.raises(errors.ConfigError, match="the host's time zone 'Mars/Olympus'") as caught:
        load(tmp_path, HEAD + "schedule: '@daily'")
    assert "time_zone" in str(caught.value.hint)
    zoned = load(tmp_path, HEAD + "schedule: {cron: '@daily', time_zone: UTC}")
    assert zoned.zone is zoneinfo.ZoneInfo("UTC")


def test_settings_of_the_job_win_over_those_of_the_configuration(tmp_path: Path) -> None:
    loaded = load(tmp_path, "job: j\nguests: [a]\nsave: {channels: auto, live: no}")
    base = configured()
    settings = config.SaveSettings(then="leave", live=True, channels=3)
    wide = structs.replace(base, save=settings)
    assert loaded.settings(wide) == config.SaveSettings(then="leave", live=False, channels="auto")


@pytest.mark.parametrize(("word", "means"), [("on", "on"), ("true", "on"), ("'off'", "off")])
def test_switches_may_be_written_as_truth_values(tmp_path: Path, word: str, means: str) -> None:
    loaded = load(tmp_path, f"job: j\nguests: [a]\nsave: {{direct_io: {word}}}")
    assert loaded.settings(configured()).direct_io == means


def test_guests_are_in_the_order_of_the_job_and_each_once(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'job: j\nguests: [web02, "db*", "*", web01]')
    everything = configured("web01", "db2", "db1", "web02")
    assert loaded.resolve(everything) == ["web02", "db2", "db1", "web01"]


def test_a_guest_whose_name_looks_like_a_pattern_is_that_guest(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'job: j\nguests: ["db*"]')
    assert loaded.resolve(configured("db*", "db1")) == ["db*"]
    assert loaded.resolve(configured("DB1", "db1")) == ["db1"]


def test_a_word_that_means_no_guest_is_named_with_its_line(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'job: j\nguests:\n  - web01\n  - web2\n  - "x*"\n')
    with pytest.raises(errors.ConfigError, match=r"job.yaml:4:5: guests\[1\].* called 'web2'"):
        loaded.resolve(configured("web01", "web02"))
    with pytest.raises(errors.ConfigError, match=r"job.yaml:5:5: .* matches the pattern 'x\*'"):
        loaded.resolve(configured("web01", "web2"))
    with pytest.raises(errors.ConfigError, match="did you mean 'web02'"):
        loaded.resolve(configured("web01", "web02"))


def test_guests_that_would_share_an_image_name_are_refused(tmp_path: Path) -> None:
    text = 'job: j\nguests: ["*"]\nsave:\n  image: "{job}-{time}"\n'
    loaded = load(tmp_path, text)
    assert loaded.resolve(configured("a")) == ["a"]
    with pytest.raises(errors.ConfigError, match=r"job.yaml:4:10: save.image: 2 guests"):
        loaded.resolve(configured("a", "b"))
    apart = load(tmp_path, text.replace("{job}", "{uuid}"))
    assert apart.resolve(configured("a", "b")) == ["a", "b"]


def test_image_name(tmp_path: Path) -> None:
    text = 'job: j\nguests: [a]\nsave: {image: "{{{guest}}}_{job}_{time:%y.%j}_{uuid}"}'
    unique = uuid.uuid4()
    name = load(tmp_path, text).image_name("my guest", WHEN, unique)
    assert name == f"{{my guest}}_j_26.059_{unique}"


def test_uuid_of_its_own_each_time(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'job: j\nguests: [a]\nsave: {image: "{uuid}"}')
    names = {loaded.image_name("a", WHEN) for _ in range(3)}
    assert len(names) == 3
    assert all(uuid.UUID(name).version == 4 for name in names)


def test_image_name_that_is_too_long_or_no_name(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'job: j\nguests: [a]\nsave: {image: "{guest}"}')
    assert loaded.image_name("é" * 127 + "x", WHEN)
    with pytest.raises(errors.ConfigError, match=r"job.yaml:3:15: save.image: .* 255 bytes"):
        loaded.image_name("é" * 128, WHEN)
    for guest in ("a/b", "a\0", ".hidden", "..", "x.partial"):
        with pytest.raises(errors.ConfigError, match=r"job.yaml:3:15: save.image: "):
            loaded.image_name(guest, WHEN)


HEAD = "job: j\nguests: [a]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guests: [a]", "job.yaml:1:1: the key 'job' is missing"),
        ("job: a/b\nguests: [a]", "job.yaml:1:6: job: the name 'a/b' contains a slash"),
        ("job: j", "job.yaml:1:1: the key 'guests' is missing"),
        ("job: j\nguests: []", "job.yaml:2:9: guests: must be a list that is not empty"),
        ("job: j\nguests: a", "job.yaml:2:9: guests: must be a list that is not empty, not 'a'"),
        ("job: j\nguests: [1]", "job.yaml:2:10: guests[0]: must be text"),
        (HEAD + "scheduel: x", "job.yaml:3:1: unknown key 'scheduel': did you mean 'schedule'?"),
        (HEAD + "save:\n  chanels: 3", "4:3: unknown key 'chanels': did you mean 'channels'?"),
        (HEAD + "save: {image: '{gast}'}", "3:15: save.image: unknown field {gast} (known: {gu"),
        (HEAD + "save: {image: '{guest.__class__}'}", "unknown field {guest.__class__}"),
        (HEAD + "save: {image: '{guest[0]}'}", "unknown field {guest[0]}"),
        (HEAD + "save: {image: '{}'}", "unknown field {}"),
        (HEAD + "save: {image: '{guest!r}'}", "{guest} takes no format"),
        (HEAD + "save: {image: '{guest:>99}'}", "{guest} takes no format"),
        (HEAD + "save: {image: '{time:{guest}}'}", "{time} takes no format"),
        (HEAD + "save: {image: '{guest'}", "save.image: expected '}' before end of string"),
        (HEAD + "save: {image: 'a/{guest}'}", "save.image: 'a/guest' is not a file name"),
        (HEAD + "save: {image: '{guest}{time:%D}'}", "is not a file name"),
        (HEAD + "save: {image: '{guest}.partial'}", "is reserved for unfinished files"),
        (HEAD + "save: {image: ''}", "job.yaml:3:15: save.image: must not be empty"),
        (HEAD + f"save: {{image: '{'x' * 256}'}}", "longer than 255 bytes"),
        (HEAD + "save: {replace: maybe}", "job.yaml:3:17: save.replace: must be true or false"),
        (HEAD + "schedule: '61 * * * *'", "job.yaml:3:11: schedule.cron: minute: '61' is neither"),
        (HEAD + "schedule: 5", "job.yaml:3:11: schedule.cron: must be text"),
        (HEAD + "schedule: [5]", "job.yaml:3:11: schedule.cron: must be text, not a list"),
        (HEAD + "schedule: {}", "job.yaml:3:11: the key 'cron' is missing in schedule"),
        (
            HEAD + "schedule:\n  cron: '* 24 * * *'",
            "job.yaml:4:9: schedule.cron: hour: '24' is neither * nor a list of 0-23",
        ),
        (
            HEAD + "schedule: {cron: '@daily', jiter: 5m}",
            "job.yaml:3:28: unknown key 'jiter': did you mean 'jitter'?",
        ),
        (
            HEAD + "schedule: {cron: '@daily', time_zone: Europe/Berln}",
            "3:39: schedule.time_zone: this host has no time zone 'Europe/Berln': did you mean "
            "'Europe/Berlin'?",
        ),
        (HEAD + "schedule: {cron: '@daily', time_zone: ../x}", "this host has no time zone '../x'"),
        (
            HEAD + "schedule: {cron: '@daily', time_zone: Europe}",
            "this host has no time zone 'Europe'",
        ),
        (HEAD + "schedule: {cron: '@daily', jitter: soon}", "schedule.jitter: not a duration"),
        (HEAD + "schedule: {cron: '@daily', jitter: 25h}", "schedule.jitter: must be at most a d"),
        (HEAD + "schedule: {cron: '@daily', persistent: 2}", "3:40: schedule.persistent: must be"),
        (HEAD + "retries: {wait: 1m}", "job.yaml:3:10: the key 'times' is missing in retries"),
        (HEAD + "retries: {times: 0}", "job.yaml:3:18: retries.times: must be a number from 1"),
        (HEAD + "retries: {times: 1, wait: 0}", "3:27: retries.wait: must be longer than 0"),
        (HEAD + "retries: 3", "job.yaml:3:10: retries: must be a mapping, not 3"),
        (HEAD + "hooks: {before_restore: [a]}", "job.yaml:3:9: unknown key 'before_restore': did"),
        (HEAD + "hooks: {after_save: [../a]}", "3:22: hooks.after_save[0]: must be the name of an"),
        (HEAD + "hooks: {after_save: a}", "hooks.after_save: must be a list"),
        (HEAD + "keep: {}", "job.yaml:3:7: keep: must keep something"),
        (HEAD + "keep: {last: 0}", "job.yaml:3:14: keep.last: must be a number from 1"),
        (HEAD + "keep: {yearly: 1}", "3:8: unknown key 'yearly' (known: daily"),
        (HEAD + "concurrency: 0", "job.yaml:3:14: concurrency: must be a number from 1"),
        (HEAD + "concurrency: true", "job.yaml:3:14: concurrency: must be a number from 1"),
        (HEAD + "concurrency: '2'", "job.yaml:3:14: concurrency: must be a number from 1"),
        (HEAD + "timeout: soon", "job.yaml:3:10: timeout: not a duration: 'soon'"),
        (HEAD + "timeout: 0", "job.yaml:3:10: timeout: must be longer than 0"),
        (HEAD + "timeout: true", "job.yaml:3:10: timeout: must be a duration, such as"),
        (HEAD + "timeout: [1]", "job.yaml:3:10: timeout: must be a duration"),
        (HEAD + "timeout: -5", "job.yaml:3:10: timeout: not a duration"),
        (HEAD + "timeout: 1:30", "job.yaml:3:10: timeout: not a duration: '1:30'"),
    ],
)
def test_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(tmp_path, text)


@settings(max_examples=400, deadline=None)
@given(st.text("{}guestjobtimeuuid:%YmdHs!r.[]0/\0é-", max_size=30) | st.text(max_size=30))
def test_random_template_gives_one_file_name_or_is_refused(text: str) -> None:
    try:
        name = template.parse(text).render("guest", "job", WHEN, uuid.UUID(int=0))
    except ValueError:  # UnicodeError is one
        return
    assert Path("/i", name).parent == Path("/i")
    assert 0 < len(name.encode()) <= 255
    assert name not in (".", "..")


LINES = st.tuples(
    st.sampled_from(["", "  ", "- "]),
    st.sampled_from(
        [
            *(
                "job",
                "guests",
                "save",
                "image",
                "then",
                "replace",
                "in_use",
                "schedule",
                "keep",
                "last",
            ),
            *("concurrency", "timeout", "channels", "cron", "jitter", "time_zone", "retries"),
            *("times", "wait", "hooks", "on_failure"),
        ]
    ),
    st.sampled_from(
        [
            "",
            "a",
            "[a]",
            "['*', b]",
            "{}",
            "{last: 1}",
            "3",
            "-1",
            "true",
            "~",
            "'{guest}'",
            "@daily",
        ]
    ),
).map(lambda parts: f"{parts[0]}{parts[1]}: {parts[2]}")


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINES, max_size=8))
def test_random_job_is_loaded_or_a_declared_error(tmp_path: Path, lines: list[str]) -> None:
    for head in ("", HEAD):
        try:
            loaded = load(tmp_path, head + "\n".join(lines))
            loaded.resolve(configured("a", "b"))
            assert loaded.image_name("a", WHEN)
        except errors.ConfigError as exc:
            assert "job.yaml:" in exc.message


def test_schema_describes_every_key() -> None:
    schema = keys.schema(job.Job)
    json.dumps(schema)
    assert set(schema["properties"]) == {
        *("job", "kind", "guests", "save", "schedule", "keep"),
        *("concurrency", "timeout", "retries", "hooks"),
    }
    times, mapping, absent = schema["properties"]["schedule"]["anyOf"]
    assert (times["type"], mapping["$ref"], absent["type"]) == (
        "string",
        "#/$defs/Schedule",
        "null",
    )
    for model in (schema, *schema["$defs"].values()):
        assert model["additionalProperties"] is False
        assert all(each.get("description") for each in model["properties"].values()), model
