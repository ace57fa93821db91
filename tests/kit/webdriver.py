"""A real browser: Chromium, driven by its chromedriver as the W3C's WebDriver says, over HTTP.

with webdriver.browser() as browser:
    browser.go("http://127.0.0.1:8000/")
    browser.script("return document.title")
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit import processes, wait
from tests.kit.nobody import NOBODY

TAB, ENTER, ESCAPE, SPACE = "\ue004", "\ue007", "\ue00c", " "
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_PATIENCE = 120  # seconds for one command, on a busy machine
_WORDS = (
    # The pages are ours, and the user is nobody; inside a container its own sandbox cannot start.
    *("--headless=new", "--no-sandbox", "--no-proxy-server", "--disable-gpu"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync"),
    *("--disable-extensions", "--disable-component-update", "--no-first-run"),
    *("--hide-scrollbars", "--force-device-scale-factor=1", "--force-color-profile=srgb"),
    *("--disable-lcd-text", "--font-render-hinting=none", "--window-size=1200,900"),
)
# Fonts of one package, drawn the same wherever the tests run.
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<dir>/usr/share/fonts/truetype/dejavu</dir><cachedir>{cache}</cachedir>
<match target="font"><edit name="hinting" mode="assign"><bool>false</bool></edit>
<edit name="antialias" mode="assign"><bool>true</bool></edit>
<edit name="rgba" mode="assign"><const>none</const></edit></match>
</fontconfig>
"""


@dataclass(frozen=True)
class Browser:
    """A session of the browser; ``url`` is where the driver serves it."""

    url: str

    def command(self, name: str, **given: Any) -> Any:
        """Do a command of WebDriver, or ask for what has no arguments; return its value."""
        return _ask(f"{self.url}/{name}", given)

    def devtools(self, name: str, **given: Any) -> Any:
        """Do a command of Chromium's own protocol, for what WebDriver has no command for."""
        return self.command("goog/cdp/execute", cmd=name, params=given)

    def go(self, url: str) -> None:
        self.command("url", url=url)

    def script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript; return what it returns."""
        return self.command("execute/sync", script=code, args=list(arguments))

    def until(self, code: str, *arguments: Any) -> Any:
        """Wait until JavaScript returns something true; return that."""
        return wait.until(lambda: self.script(f"return {code}", *arguments), what=code)

    def press(self, *keys: str) -> None:
        """Press keys one after another, as on a keyboard."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.command("actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Have a window of that size in pixels, and its user prefer dark or light pages."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """Return the whole page as PNG."""
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def complaints(self) -> list[str]:
        """Return what the console got since the last time: errors of pages, what CSP forbade."""
        return [
            f"{each['level']}: {each['message']}" for each in self.command("se/log", type="browser")
        ]


def _ask(url: str, body: Any = None, method: str = "POST") -> Any:
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(), method=method
    )
    try:
        with _DIRECT.open(request, timeout=_PATIENCE) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.read().decode()}") from None


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser as nobody; left out where there is none. Root is needed."""
    if shutil.which("chromedriver") is None or shutil.which("chromium") is None:
        pytest.skip("no chromium, or no chromium-driver")
    with tempfile.TemporaryDirectory(prefix="mapsave-browser-") as name:
        home = Path(name)
        (home / "fonts.conf").write_text(_FONTS.format(cache=home / "fonts"))
        os.chown(home, NOBODY, NOBODY)
        with _driver(home) as url:
            options = {"args": [*_WORDS, f"--user-data-dir={home / 'profile'}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = _ask(f"{url}/session", {"capabilities": {"alwaysMatch": wanted}})
            session = f"{url}/session/{made['sessionId']}"
            try:
                yield Browser(session)
            finally:
                _ask(session, method="DELETE")
                processes.end_at_home(home)


@contextlib.contextmanager
def _driver(home: Path) -> Iterator[str]:
    log = home / "driver.log"
    environment = {"HOME": str(home), "FONTCONFIG_FILE": str(home / "fonts.conf")}
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    with (
        log.open("w") as output,
        processes.running(
            [*user, "chromedriver", "--port=0"],
            env={**environment, "TMPDIR": str(home), "LANG": "C.UTF-8", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=home,
        ) as process,
    ):

        def port() -> str | None:
            assert process.poll() is None, log.read_text()
            found = re.search(r"started successfully on port (\d+)", log.read_text())
            return found and found[1]

        yield f"http://127.0.0.1:{wait.until(port, what='chromedriver')}"
