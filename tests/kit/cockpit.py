"""A real Cockpit with mapsave's page, as a user of this host who has logged in.

with cockpit.session(site, [group]) as page:
    browser.go(page)
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kit import cli, ports, processes, tree, wait
from tests.kit.nobody import NOBODY
from tests.kit.webdriver import Browser

PAGE = tree.SOURCES / "mapsave/cockpit"
_WEB_SERVER = "/usr/lib/cockpit/cockpit-ws"
# What makes root of a user: here capabilities, where Cockpit has sudo.
_CAPABLE = ("--inh-caps=+setuid,+setgid", "--ambient-caps=+setuid,+setgid")
_ROOT = ["setpriv", "--reuid=0", "--regid=0", "--clear-groups"]
_SHELL = {"bridges": [{"privileged": True, "spawn": [*_ROOT, "cockpit-bridge", "--privileged"]}]}
# What Cockpit's own button does: on, or off.
_ADMINISTRATE = """
const superuser = cockpit.dbus(null, { bus: "internal" }).proxy("cockpit.Superuser", "/superuser");
return superuser.wait().then(() => (
    arguments[0] ? superuser.Start(superuser.Bridges[0]) : superuser.Stop()));
"""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def session(
    site: cli.Site, groups: Sequence[int] | None, *, may_be_root: bool = False
) -> Iterator[str]:
    """Run Cockpit for a session that has begun; yield the page's address.

    The user is nobody in ``groups``, or root where these are None. With ``may_be_root`` that user
    can turn on administrative access, as one who may use sudo can.
    """
    if not os.path.exists(_WEB_SERVER) or shutil.which("cockpit-bridge") is None:
        pytest.skip("no cockpit-ws, or no cockpit-bridge")
    uid = 0 if groups is None else NOBODY
    with tempfile.TemporaryDirectory(prefix="mapsave-cockpit-") as name:
        home = Path(name)
        shutil.copytree(PAGE, home / "data/cockpit/mapsave")
        settings = home / "config/cockpit/mapsave.override.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"config": {"socket": str(site.socket)}}))
        if may_be_root:
            (settings.parent / "shell.override.json").write_text(json.dumps(_SHELL))
        os.chown(home, uid, uid)
        words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", *_groups(groups or [])]
        with _web_server(home, [*words, *(_CAPABLE if may_be_root else ())]) as address:
            yield f"{address}/cockpit/@localhost/mapsave/index.html"


def _groups(groups: Sequence[int]) -> list[str]:
    return [f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"]


@contextlib.contextmanager
def _web_server(home: Path, user: list[str]) -> Iterator[str]:
    environment = {
        "HOME": str(home),
        "XDG_DATA_DIRS": f"{home / 'data'}:/usr/share",
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_RUNTIME_DIR": str(home),
        # Else the bridge starts both, and leaves them behind.
        "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent",
        "SSH_AUTH_SOCK": "/nonexistent",
    }
    log = home / "cockpit.log"
    port = ports.reserved()
    words = (_WEB_SERVER, "--local-session=cockpit-bridge", "-a", "127.0.0.1", "-p", str(port))
    with (
        log.open("w") as output,
        processes.running(
            [*user, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=home,
        ) as process,
    ):

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(urllib.error.URLError, OSError):
                _DIRECT.open(f"http://127.0.0.1:{port}/ping", timeout=30).close()
                return True
            return False

        wait.until(answers, what="answer of Cockpit")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            processes.end_at_home(home)


def administrate(browser: Browser, on: bool) -> None:
    """Turn the administrative access of the user who is logged in on or off."""
    browser.script(_ADMINISTRATE, on)


def policy(page: str) -> str:
    """Return the Content-Security-Policy that Cockpit serves a page with."""
    with _DIRECT.open(page, timeout=30) as answer:
        return str(answer.headers["Content-Security-Policy"])
