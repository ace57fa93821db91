"""What a user does with the page in Cockpit, by the keyboard alone, and what is seen of it."""

from tests.kit.webdriver import ENTER, TAB, Browser

_TABS = 60  # more than the page has to be pressed through


def opened(browser: Browser, page: str) -> Browser:
    browser.go(page)
    browser.until("document.getElementById('waiting')?.hidden")
    return browser


def text(browser: Browser, place: str = "body") -> str:
    return str(browser.script("return document.querySelector(arguments[0]).innerText", place))


def buttons(browser: Browser) -> set[str]:
    """Return what the buttons of the page are for."""
    every = "return [...document.querySelectorAll('[data-act]')].map(each => each.dataset.act)"
    return set(browser.script(every))


def to_button(browser: Browser, act: str, on: str) -> None:
    """Press Tab until a button has the focus."""
    at = "const data = document.activeElement.dataset; return [data.act, data.on]"
    for _ in range(_TABS):
        browser.press(TAB)
        if browser.script(at) == [act, on]:
            return
    raise AssertionError(f"Tab does not reach {act} {on}")


def to_field(browser: Browser, name: str) -> None:
    """Press Tab until an input of the dialog has the focus; ``button`` is the one that agrees."""
    at = "const it = document.activeElement; return it.name || it.type"
    for _ in range(_TABS):
        if browser.script(at) == name:
            return
        browser.press(TAB)
    raise AssertionError(f"Tab does not reach {name}")


def agree(browser: Browser) -> None:
    """Agree to what the dialog asks, once it is there; it closes."""
    browser.until("document.querySelector('dialog') !== null")
    to_field(browser, "submit")
    browser.press(ENTER)
    browser.until("document.querySelector('dialog') === null")
