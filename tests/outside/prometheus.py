"""A real Prometheus that scrapes a service, on loopback."""

import contextlib
import json
import math
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit import ports, processes, tree, wait
from tests.service.authority import Authority

EXAMPLES = tree.ROOT / "examples/prometheus"
INTERVAL = 0.5  # seconds from one scrape to the next


@dataclass(frozen=True)
class Prometheus:
    """A server that runs."""

    port: int
    log: Path

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series that a query finds now. Fails if it is wrong."""
        words = urllib.parse.urlencode({"query": query})
        found = self._get(f"/api/v1/query?{words}")
        assert found["data"]["resultType"] == "vector", query
        return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]

    def numbers(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return those of them that have a number, and are no division by zero."""
        return [each for each in self.ask(query) if math.isfinite(each[1])]

    def alerts(self) -> set[str]:
        """Return the names of the alerts that are pending or firing."""
        found = self._get("/api/v1/alerts")["data"]["alerts"]
        return {each["labels"]["alertname"] for each in found}

    def is_ready(self) -> bool:
        with (
            contextlib.suppress(OSError),  # of which an answer of 503 is one
            _OPENER.open(f"http://127.0.0.1:{self.port}/-/ready", timeout=wait.LONG),
        ):
            return True
        return False

    def _get(self, path: str) -> Any:
        try:
            with _OPENER.open(f"http://127.0.0.1:{self.port}{path}", timeout=wait.LONG) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None


# The environment may name a proxy, which loopback is not reached by.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running(directory: Path, target: str, authority: Authority) -> Iterator[Prometheus]:
    """Run the example configuration against ``target``, but with our certificates and haste."""
    directory.mkdir()
    settings = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    settings["global"] = dict.fromkeys(
        ("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{INTERVAL * 1000:.0f}ms"
    )
    certificate, key = authority.issue("/CN=prometheus.example.org")
    (scrape,) = settings["scrape_configs"]
    scrape["tls_config"] |= {
        "ca_file": str(authority.certificate),
        "cert_file": str(certificate),
        "key_file": str(key),
    }
    scrape["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(settings))
    for name in settings["rule_files"]:
        shutil.copy(EXAMPLES / name, directory)
    port = ports.reserved()
    words = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = directory / "log"
    with (
        log.open("w") as output,
        processes.running(words, stdout=output, stderr=output) as process,
    ):
        found = Prometheus(port, log)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return found.is_ready()

        wait.until(answers, what="answer of Prometheus")
        yield found


def promtool(*words: str, given: str | None = None) -> str:
    """Run promtool on something that it must find good; return what it says."""
    done = subprocess.run(
        ["promtool", *words],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=wait.LONG,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def need() -> None:
    """Leave the test out where there is no Prometheus."""
    for command in ("prometheus", "promtool", "openssl"):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command}")
