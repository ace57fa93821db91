"""TLS of ``listen``: certificates that are renewed, revoked or not for clients; strangers."""

import contextlib
import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, ports, processes, service, wait
from tests.service.authority import Authority
from tests.service.users import UID

# The limits of accepting.py, lower.
_CODE = (
    "from mapsave.cli import start; from mapsave.service import accepting;"
    "accepting.USUAL = accepting.Limits({}); start.command()"
)
IMPATIENT = [sys.executable, "-c", _CODE.format("handshake=0.5")]
STRICT = [sys.executable, "-c", _CODE.format("handshake=240, of_address=4, open=3")]
REFUSED = r"certificate|reset|closed|EOF|alert|CERTIFICATE"


@dataclass
class Secured:
    """A service with ``listen``, and the files that it was given."""

    mapsaved: service.Service
    authority: Authority
    port: int
    files: Path

    def connect(
        self, certificate: tuple[Path, Path] | None, authority: Authority | None = None
    ) -> http.client.HTTPSConnection:
        trusted = authority or self.authority
        context = ssl.create_default_context(cafile=str(trusted.certificate))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=wait.LONG, context=context
        )

    def ask(self, certificate: tuple[Path, Path] | None, **how: Any) -> int:
        """Return the status of an answer; raise OSError where the connection is refused."""
        with contextlib.closing(self.connect(certificate, **how)) as connection:
            return status(connection)

    def refuses(self, certificate: tuple[Path, Path]) -> bool:
        try:
            return self.ask(certificate) == 403
        except (OSError, http.client.HTTPException):
            return True

    def reload(self, expected: int = 200) -> str:
        answer = self.mapsaved.request("POST", "/v1/reload")
        assert answer.status == expected, answer
        return answer.body.decode()

    def renew(self, key: str, source: Path) -> None:
        shutil.copy(source, self.files / f"{key}.pem")


def status(connection: http.client.HTTPSConnection) -> int:
    connection.request("GET", "/v1/guests")
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA that the service trusts at first."""
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@contextlib.contextmanager
def secured(
    site: cli.Site, authority: Authority, *, crl: Path | None = None, **how: Any
) -> Iterator[Secured]:
    files = site.directory / "tls"
    files.mkdir()
    port = ports.reserved()
    certificate, secret = authority.issue("/CN=mapsaved", "serverAuth")
    sources = {"certificate": certificate, "key": secret, "clients": authority.certificate}
    if crl is not None:
        sources["crl"] = crl
    listen: dict[str, Any] = {"address": f"127.0.0.1:{port}", "operators": ["alice", "bob"]}
    for key, source in sources.items():
        shutil.copy(source, files / f"{key}.pem")
        listen[key] = str(files / f"{key}.pem")
    site.settings = {"service": {"listen": listen}}
    site.write()
    with service.running(site, **how) as mapsaved:
        yield Secured(mapsaved, authority, port, files)


@pytest.mark.parametrize(
    "purposes", [None, "serverAuth", "emailProtection", "anyExtendedKeyUsage", "codeSigning"]
)
def test_a_certificate_that_is_not_for_clients(
    site: cli.Site, authority: Authority, purposes: str | None
) -> None:
    with secured(site, authority) as found:
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert found.ask(authority.issue("/CN=alice", purposes)) == 403
        for good in ("clientAuth", "serverAuth,clientAuth"):
            assert found.ask(authority.issue("/CN=alice", good)) == 200


def test_a_revoked_certificate(site: cli.Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    alice, bob = (authority.issue(f"/CN={name}") for name in ("alice", "bob"))
    with secured(site, authority, crl=authority.revoke(alice[0])) as found:
        assert found.refuses(alice)
        with contextlib.closing(found.connect(bob)) as kept:
            assert status(kept) == 200
            found.renew("crl", authority.revoke(bob[0]))
            assert found.ask(bob) == 200  # not read yet
            found.reload()
            assert found.refuses(bob)
            # Nor does the connection that he had.
            with pytest.raises((OSError, http.client.HTTPException)):
                kept.auto_open = 0
                status(kept)
        assert "certificate revoked" in found.mapsaved.logged()


def test_without_a_list_that_is_current_nobody_is_let_in(site: cli.Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    alice = authority.issue("/CN=alice")
    with secured(site, authority, crl=authority.revoke(days=-1)) as found:
        for _ in range(5):
            assert found.refuses(alice)
        assert found.mapsaved.logged().count("CRL has expired") == 1
        found.renew("crl", authority.revoke(days=1))
        found.reload()
        assert found.ask(alice) == 200


def test_a_list_is_no_way_to_trust_another_ca(
    site: cli.Site, authority: Authority, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    other = Authority(tmp_path / "other")
    both.write_bytes(authority.revoke().read_bytes() + other.certificate.read_bytes())
    with secured(site, authority, crl=authority.revoke()) as found:
        found.renew("crl", both)
        assert "service.listen.crl" in found.reload(400)
        assert found.ask(authority.issue("/CN=alice")) == 200
        assert found.refuses(other.issue("/CN=alice"))


def served(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=wait.LONG)


@pytest.mark.parametrize("how", ["request", "signal"])
def test_certificates_are_renewed_by_a_reload(
    site: cli.Site, authority: Authority, tmp_path: Path, how: str
) -> None:
    other = Authority(tmp_path / "other")
    alice = authority.issue("/CN=alice")
    with secured(site, authority) as found:
        assert found.ask(alice) == 200
        certificate, secret = other.issue("/CN=mapsaved", "serverAuth")
        sources = {"certificate": certificate, "key": secret, "clients": other.certificate}
        for key, source in sources.items():
            found.renew(key, source)
        if how == "request":
            found.reload()
        else:
            found.mapsaved.signal(signal.SIGHUP)
            found.mapsaved.await_log("configuration reloaded")
        assert found.ask(other.issue("/CN=alice"), authority=other) == 200
        with pytest.raises(OSError, match=REFUSED):
            found.ask(alice, authority=other)


def test_a_bad_renewal_changes_nothing(site: cli.Site, authority: Authority) -> None:
    alice = authority.issue("/CN=alice")
    with secured(site, authority) as found:
        (found.files / "certificate.pem").write_text("half of it")
        assert "service.listen.certificate" in found.reload(400)
        assert found.ask(alice) == 200


def idle(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=wait.LONG)


def is_closed(sock: socket.socket) -> bool:
    """Wait until the service closes a connection on which it has nothing to say."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_handshake_has_its_time(site: cli.Site, authority: Authority) -> None:
    with secured(site, authority, command=IMPATIENT) as found, idle(found.port) as sock:
        assert is_closed(sock)
        found.mapsaved.await_log("handshake")


def test_one_address_has_few_handshakes_at_once(site: cli.Site, authority: Authority) -> None:
    with secured(site, authority) as found, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(idle(found.port)) for _ in range(32)]
        assert is_closed(stack.enter_context(idle(found.port)))
        # Who comes over the unix socket does not notice.
        assert found.mapsaved.get("/v1/health")
        waiting.pop().close()
        wait.until(
            lambda: not found.refuses(authority.issue("/CN=alice")), what="a place that is free"
        )


def test_clients_without_a_role_have_few_connections(site: cli.Site, authority: Authority) -> None:
    mallory = authority.issue("/CN=mallory")
    with secured(site, authority, command=STRICT) as found, contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(contextlib.closing(found.connect(mallory)))
            assert status(connection) == 403
        with pytest.raises(OSError, match=REFUSED):
            found.ask(mallory)


def test_errors_of_clients_do_not_flood_the_log(site: cli.Site, authority: Authority) -> None:
    with secured(site, authority) as found:
        for _ in range(20):
            with idle(found.port) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert is_closed(sock)
        assert found.mapsaved.logged().count("a client over TLS was refused") == 1


_HOLD = """
import socket, sys
held = []
for _ in range(20):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    sock.settimeout(240)
    try:
        sock.sendall(b"GET /v1/guests HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        answered = sock.recv(65536).startswith(b"HTTP/1.1 403")
    except OSError:
        answered = False
    held.append((sock, answered))
print(sum(answered for _, answered in held))
"""


@pytest.mark.root
def test_a_user_without_a_role_has_few_connections() -> None:
    with service.reachable_site() as site:
        site.directory.chmod(0o755)
        with service.running(site) as mapsaved:
            words = [*service.as_user(UID, UID, []), sys.executable, "-c", _HOLD]
            done = subprocess.run(
                [*words, str(site.socket)],
                capture_output=True,
                text=True,
                check=False,
                timeout=wait.LONG,
                env=processes.environment(),
            )
            assert done.stdout == "16\n", done.stderr
            assert mapsaved.get("/v1/health")
