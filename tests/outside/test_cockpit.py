"""The page in Cockpit, in a real browser: what users of each role see of it and do with it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kit import cockpit, emulated, service, wait, webdriver
from tests.kit.webdriver import ENTER, ESCAPE, SPACE, Browser
from tests.outside.by_keyboard import agree, buttons, opened, text, to_button, to_field
from tests.service.users import OPERATORS, READERS

pytestmark = pytest.mark.root

GROUPS = {"admin": None, "operator": [OPERATORS.gr_gid], "reader": [READERS.gr_gid], "none": []}
Pages = Callable[[str], str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with webdriver.browser() as found:
        yield found


@pytest.fixture(scope="module")
def mapsaved() -> Iterator[service.Service]:
    """A service with guests, one of them slow to save, a job and an image."""
    with service.reachable_site() as site, contextlib.ExitStack() as stack:
        site.directory.chmod(0o755)
        site.settings["service"] = {
            "operators": [OPERATORS.gr_name],
            "readers": [READERS.gr_name],
        }
        for name in ("web01", "db"):
            stack.enter_context(emulated.guest(site, name))
        slow = emulated.guest(site, "slow", size=64 * emulated.MIB, throttle="1M")
        stack.enter_context(slow)
        nightly = {"save": {"then": "resume"}, "schedule": {"cron": "0 3 * * *"}}
        site.add_job("nightly", guests=["db"], **nightly)
        running = stack.enter_context(service.running(site))
        wait.until(lambda: running.get("/v1/health")["operations"] == 0, what="the end of all")
        save = {"image": "first", "then": "resume", "note": "before the upgrade"}
        running.done(kind="save", guest="web01", save=save)
        yield running


@pytest.fixture
def pages(mapsaved: service.Service) -> Iterator[Pages]:
    """What begins a session of Cockpit for a user of a role, and returns the page's address.

    Of a test alone: a session without a browser ends after some seconds.
    """
    with contextlib.ExitStack() as stack:
        yield lambda role: stack.enter_context(cockpit.session(mapsaved.site, GROUPS[role]))


@pytest.fixture(autouse=True)
def _nothing_is_complained_of(browser: Browser, pages: Pages) -> Iterator[None]:
    """Have a page without errors, and nothing that its Content-Security-Policy forbids.

    It is left before its server ends (``pages``): it may be loading fonts still.
    """
    browser.look(width=1200)
    browser.complaints()
    yield
    complaints = browser.complaints()
    browser.go("about:blank")
    assert [each for each in complaints if not each.startswith("DEBUG")] == []


def ended(mapsaved: service.Service, **query: str) -> Any:
    """Return the last operation that a query finds, once it has ended."""
    chosen = "&".join(f"{key}={value}" for key, value in query.items())
    (last,) = mapsaved.get(f"/v1/operations?limit=1&{chosen}")["operations"]
    return mapsaved.ended(last["id"])


MAY = {
    "admin": {"look", "save", "restore", "discard", "job", "save-all", "restore-all"},
    "operator": {"look", "save", "restore", "job", "save-all", "restore-all"},
    "reader": {"look"},
}


@pytest.mark.parametrize("role", MAY)
def test_a_user_sees_what_there_is_and_what_the_role_may_do(
    browser: Browser, pages: Pages, role: str
) -> None:
    opened(browser, pages(role))
    shown = text(browser)
    for word in (role, "web01", "running", "first", "before the upgrade", "nightly", "never"):
        assert word in shown
    assert buttons(browser) == MAY[role]
    if role == "reader":
        assert OPERATORS.gr_name in shown


def test_a_user_without_a_role_is_shown_what_to_ask_for(browser: Browser, pages: Pages) -> None:
    opened(browser, pages("none"))
    assert not buttons(browser)
    shown = text(browser)
    assert "You have no right to look at saved guests" in shown
    assert "permission.role" in shown
    assert READERS.gr_name in shown
    assert "web01" not in shown
    browser.complaints()  # that the service has answered 403 is one


def test_administrative_access_makes_root_of_a_user(
    browser: Browser, mapsaved: service.Service
) -> None:
    """With it, also a service that is root's alone is reached; without it again, it is not."""
    socket = mapsaved.site.socket
    said = "turn on Cockpit\\'s administrative access"
    may_be_turned_on = f"document.body.innerText.includes('{said}')"
    with cockpit.session(mapsaved.site, [], may_be_root=True) as page:
        socket.chmod(0o600)
        try:
            opened(browser, page)
            assert "You may not connect" in text(browser)
            browser.until(may_be_turned_on)
            cockpit.administrate(browser, on=True)
            browser.until("document.getElementById('caller').innerText.includes('root')")
            wait.until(lambda: buttons(browser) == MAY["admin"], what="the buttons of an admin")
        finally:
            socket.chmod(0o666)
        cockpit.administrate(browser, on=False)
        browser.until("document.body.innerText.includes('You have no right')")
        browser.until(may_be_turned_on)
        assert not buttons(browser)
    browser.complaints()  # that the service has answered 403 is one


def test_the_page_is_served_with_cockpits_strictest_policy(pages: Pages) -> None:
    policy = cockpit.policy(pages("reader"))
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_the_keyboard_alone_saves_a_guest(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    opened(browser, pages("operator"))
    to_button(browser, "save", "web01")
    browser.press(ENTER)
    assert "Save web01?" in text(browser, "dialog")
    browser.press(ESCAPE)
    browser.until("document.querySelector('dialog') === null")
    assert browser.script("return document.activeElement.dataset.act") == "save"
    browser.press(ENTER)
    to_field(browser, "then")
    browser.press("\ue015")  # the arrow down: from "shut it down" to "resume it"
    to_field(browser, "image")
    browser.press(*"typed")
    to_field(browser, "note")
    browser.press(*"by hand")
    agree(browser)
    browser.until("document.querySelector('#images').innerText.includes('typed')")
    assert ended(mapsaved, kind="save")["state"] == "done"
    (image,) = [each for each in mapsaved.get("/v1/images")["images"] if each["name"] == "typed"]
    assert (image["guest"], image["note"], image["state"]) == ("web01", "by hand", "saved")
    assert emulated.status(emulated.socket_of(mapsaved.site, "web01")) == "running"
    browser.until("document.activeElement.dataset.on === 'web01'")  # where it was before


def test_a_save_is_followed_by_events_and_can_be_cancelled(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    opened(browser, pages("operator"))
    number = mapsaved.begin(kind="save", guest="slow", save={"image": "cut"})["id"]
    browser.until("document.querySelector('progress')?.value > 0")
    seen = browser.script("return document.querySelector('progress').value")
    browser.until("document.querySelector('progress').value > arguments[0]", seen)
    assert "busy" in text(browser, "#guests")
    to_button(browser, "cancel", number)
    browser.press(SPACE)
    assert "rolled back" in text(browser, "dialog")
    agree(browser)
    assert mapsaved.ended(number)["state"] == "cancelled"
    browser.until("document.getElementById('said').innerText === 'save slow: cancelled'")
    browser.until("document.querySelector('progress') === null")
    assert emulated.status(emulated.socket_of(mapsaved.site, "slow")) == "running"


def test_a_guest_that_was_shut_down_is_restored(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    site = mapsaved.site
    with emulated.guest(site, "mail") as socket:
        assert mapsaved.request("POST", "/v1/reload").status == 200
        opened(browser, pages("admin"))
        mapsaved.done(kind="save", guest="mail", save={"image": "quit"})
        browser.until("document.querySelector('#guests [data-act=restore][data-on=quit]')")
        to_button(browser, "restore", "quit")
        browser.press(ENTER)
        agree(browser)
        browser.until("document.querySelector('#guests [data-act=save][data-on=mail]')")
        assert ended(mapsaved, kind="restore")["state"] == "done"
        assert emulated.status(socket) == "running"
        browser.until("document.querySelector('#images').innerText.includes('restored')")


def test_all_guests_are_saved_and_brought_back(browser: Browser) -> None:
    with service.reachable_site() as site, contextlib.ExitStack() as stack:
        site.directory.chmod(0o755)
        site.settings["service"] = {"operators": [OPERATORS.gr_name]}
        sockets = [stack.enter_context(emulated.guest(site, name)) for name in ("one", "two")]
        mapsaved = stack.enter_context(service.running(site))
        opened(browser, stack.enter_context(cockpit.session(site, GROUPS["operator"])))
        to_button(browser, "save-all", "all guests")
        browser.press(ENTER)
        assert "one, two" in text(browser, "dialog")
        browser.press(ESCAPE)
        browser.until("document.activeElement.dataset.act === 'save-all'")
        assert [emulated.status(each) for each in sockets] == ["running"] * 2
        browser.press(ENTER)
        to_field(browser, "deadline")
        browser.press(*"5m")
        agree(browser)
        browser.until("document.querySelector('#operations').innerText.includes('2 saved')")
        begun = ended(mapsaved, kind="save-all")
        assert begun["request"] == {"deadline": 300.0}
        browser.until("document.querySelector('[data-act=save-all]') === null")
        to_button(browser, "restore-all", "all guests")
        browser.press(ENTER)
        agree(browser)
        browser.until("document.querySelector('#operations').innerText.includes('2 restored')")
        assert [emulated.status(each) for each in sockets] == ["running"] * 2
        browser.go("about:blank")


def test_an_image_is_discarded_only_with_a_tick(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    opened(browser, pages("admin"))
    to_button(browser, "discard", "first")
    browser.press(ENTER)
    assert "never restored" in text(browser, "dialog")
    to_field(browser, "submit")
    browser.press(ENTER)  # nothing is done without the tick
    assert (
        browser.script("return document.querySelector('dialog input:invalid').name") == "unrestored"
    )
    to_field(browser, "unrestored")
    browser.press(SPACE)
    agree(browser)
    browser.until("!document.querySelector('#images').innerText.includes('first')")
    browser.until("document.activeElement.id === 'images-title'")
    assert not (mapsaved.site.images / "first").exists()


def test_a_job_is_run_and_its_outcome_shown(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    opened(browser, pages("operator"))
    to_button(browser, "job", "nightly")
    browser.press(ENTER)
    assert "db" in text(browser, "dialog")
    agree(browser)
    browser.until("document.querySelector('#jobs').innerText.includes('1 saved')")
    assert ended(mapsaved, kind="job")["state"] == "done"
    assert "part of job nightly" in text(browser, "#operations")


def test_errors_are_shown_with_id_and_hint(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    """What is refused at once in the dialog, what fails later above everything."""
    opened(browser, pages("operator"))
    to_button(browser, "save", "web01")
    browser.press(ENTER)
    to_field(browser, "image")
    browser.press(*"a/b")
    to_field(browser, "submit")
    browser.press(ENTER)
    refused = browser.until("document.querySelector('dialog .failure')?.innerText")
    assert "request.invalid" in refused
    browser.press(ESCAPE)

    mapsaved.done(kind="save", guest="web01", save={"image": "twice", "then": "resume"})
    browser.until("document.querySelector('[data-act=restore][data-on=twice]')")
    to_button(browser, "restore", "twice")
    browser.press(ENTER)
    browser.until("document.querySelector('dialog [name=disks]') !== null")  # the guest went on
    to_field(browser, "disks")
    browser.press(SPACE)
    agree(browser)
    failed = browser.until("document.querySelector('#notices .failure')?.innerText")
    error = ended(mapsaved, kind="restore")["error"]
    for word in (error["message"], error["hint"], error["id"], "restore"):
        assert word in failed
    to_button(browser, "dismiss", ended(mapsaved, kind="restore")["id"])
    browser.press(ENTER)
    browser.until("document.querySelector('#notices').innerText === ''")


def test_an_image_is_looked_into(browser: Browser, pages: Pages, mapsaved: service.Service) -> None:
    name = "é <b>&amp; 50%"  # text, in the page as in the request
    save = {"image": name, "then": "resume", "note": "<i>a note"}
    mapsaved.done(kind="save", guest="web01", save=save)
    opened(browser, pages("reader"))
    assert "<i>a note" in text(browser, "#images")
    to_button(browser, "look", name)
    browser.press(ENTER)
    shown = browser.until("document.querySelector('dialog dl')?.innerText")
    for word in ("web01", "8.0 MiB", "<i>a note"):
        assert word in shown
    assert browser.until("document.querySelector('dialog img')?.naturalWidth") > 100
    assert buttons(browser) == MAY["reader"]  # in the dialog, too
    browser.press(ESCAPE)
    browser.until("document.activeElement.dataset.on === arguments[0]", name)


def test_an_image_is_verified_pinned_and_unpinned(
    browser: Browser, pages: Pages, mapsaved: service.Service
) -> None:
    mapsaved.done(kind="save", guest="web01", save={"image": "kept", "then": "resume"})
    opened(browser, pages("admin"))
    for act in ("verify", "pin", "unpin"):
        to_button(browser, "look", "kept")
        browser.press(ENTER)
        browser.until(f"document.querySelector('dialog [data-act={act}]') !== null")
        to_button(browser, act, "kept")
        browser.press(ENTER)
        browser.until("document.querySelector('dialog form') !== null")
        agree(browser)
        browser.until(
            "document.getElementById('said').innerText === arguments[0]", f"{act} kept: done"
        )
        assert mapsaved.get("/v1/images/kept")["pinned"] is (act == "pin")
        if act == "pin":
            browser.until("document.querySelector('#images').innerText.includes('pinned')")
    with_it = "document.querySelector('#images [data-act=discard][data-on=kept]')"
    browser.until(with_it)


def test_no_service_and_nothing_configured_are_said_in_plain_words(browser: Browser) -> None:
    with service.reachable_site() as site:
        site.directory.chmod(0o755)
        site.add_job("nightly", guests=[])
        with cockpit.session(site, None) as page:
            opened(browser, page)
            assert "The service is not running" in text(browser)
            assert str(site.socket) in text(browser)
            with service.running(site) as mapsaved:
                browser.until("!document.getElementById('page').hidden")
                for words in (
                    *("No guests are configured", "There are no jobs", "The service is degraded"),
                    *("config.invalid", "Nothing runs", "there are no images"),
                ):
                    assert words in text(browser)
                mapsaved.stop()
                browser.until("document.body.innerText.includes('The service is not running')")
    browser.complaints()


def test_the_shell_has_the_page_in_its_menu(browser: Browser, pages: Pages) -> None:
    """As users reach it: by Cockpit's own menu, in its frame, dark when its switch says so."""
    browser.go(pages("reader").partition("/cockpit/")[0] + "/mapsave")
    browser.until("document.querySelector('nav a[href*=mapsave]')?.innerText === 'Saved guests'")
    frame = "document.querySelector('iframe[name*=mapsave]').contentDocument"
    browser.until(f"{frame}?.getElementById('waiting')?.hidden")
    assert "web01" in browser.script(f"return {frame}.body.innerText")
    assert browser.script(f"return {frame}.documentElement.dataset.theme") == "light"
    browser.script("localStorage.setItem('shell:style', 'dark')")
    browser.until(f"{frame}.documentElement.dataset.theme === 'dark'")
    browser.script("localStorage.removeItem('shell:style')")
    browser.go("about:blank")
    browser.complaints()  # of the shell, which misses a bus here
