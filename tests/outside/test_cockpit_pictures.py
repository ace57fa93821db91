"""What the page in Cockpit looks like: wide and narrow, light and dark, as in stored pictures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cockpit, pictures, service, tree, wait, webdriver
from tests.kit.webdriver import Browser

pytestmark = pytest.mark.root

HERE = Path(__file__).parent / "pictures"
WIDE = tree.ROOT / "docs/cockpit.png"  # which the documentation shows
# Times, ids, durations and sizes on disk are others each time, and messages are reworded.
_FIX = """
const same = (query, words) =>
    document.querySelectorAll(query).forEach(each => each.textContent = words);
same("time", "2026-11-27 02:40");
same("code:not(.failure-id)", "642a00fb1c3d");
same("#operations td:nth-child(3) .faint", "171 ms");
document.querySelectorAll(".failure").forEach(each => {
    const told = { div: "shut it down first", strong: "the guest 'web01' is already running" };
    each.replaceChildren(each.lastElementChild);
    for (const [tag, words] of Object.entries(told)) {
        each.prepend(document.createElement(tag));
        each.firstElementChild.textContent = words;
    }
});
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode())
    texts.currentNode.data = texts.currentNode.data.replace(/[0-9.]+ MiB/, "3.9 MiB");
document.activeElement.blur();
return document.fonts.ready.then(() => document.documentElement.scrollWidth);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that shows a guest that runs, one that is saved only, and a restore that failed."""
    with service.reachable_site() as site, webdriver.browser() as found:
        site.directory.chmod(0o755)
        for name in ("web01", "db"):
            site.add_guest(name, emulator={"memory": "8M"})
        site.add_job(
            "nightly",
            guests=["web01", "db"],
            save={"then": "resume"},
            schedule={"cron": "0 3 * * *"},
        )
        with service.running(site) as mapsaved, cockpit.session(site, None) as page:
            wait.until(lambda: mapsaved.get("/v1/health")["recovered"], what="recovery")
            noted = {"image": "web01-before", "then": "resume", "note": "before the upgrade"}
            mapsaved.done(kind="save", guest="web01", save=noted)
            failed = mapsaved.ended(mapsaved.begin(kind="restore", image="web01-before")["id"])
            assert failed["state"] == "failed"
            mapsaved.done(kind="save", guest="db", save={"image": "db-evening"})
            found.go(page)
            found.until("document.getElementById('waiting')?.hidden")
            yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1000, 400])
def test_the_page_looks_as_stored(browser: Browser, width: int, dark: bool, tmp_path: Path) -> None:
    name = f"{width}-{'dark' if dark else 'light'}.png"
    stored = WIDE if name == "1000-light.png" else HERE / name
    browser.look(width=width, dark=dark)
    browser.until("document.documentElement.dataset.theme === arguments[0]", name[-9:-4].strip("-"))
    assert browser.script(_FIX) == width, "it can be scrolled sideways"
    taken = browser.picture()
    pictures.store(taken, tmp_path / name)
    found = pictures.difference(taken, stored) if stored.exists() else "no such picture"
    assert found is None, f"{stored} differs: {found}; if {tmp_path / name} is right, copy it there"
    assert stored.stat().st_size <= pictures.LARGEST


@pytest.mark.parametrize(
    "change",
    [
        "document.querySelector('button').style.visibility = 'hidden'",
        "document.querySelector('.state').style.color = 'red'",
        "document.querySelector('tbody th').style.paddingLeft = '8px'",
        "document.querySelector('section').style.background = 'lightgrey'",
    ],
)
def test_a_small_change_is_seen(browser: Browser, change: str) -> None:
    """The comparison can fail."""
    browser.look(width=1000)
    browser.script(_FIX)
    before = browser.script("return document.body.innerHTML")
    browser.script(change)
    assert pictures.difference(browser.picture(), WIDE) is not None
    kept = "document.querySelectorAll('[style]').forEach(each => each.removeAttribute('style'))"
    browser.script(kept)
    assert browser.script("return document.body.innerHTML") == before
    assert pictures.difference(browser.picture(), WIDE) is None
