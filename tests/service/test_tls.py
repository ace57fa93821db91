"""TCP is for those with a certificate of the right CA; without ``listen`` there is none at all."""

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, ports, processes, service, wait
from tests.service.authority import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA that the service trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


PORT = ports.reserved()


@pytest.fixture(scope="module")
def mapsaved(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[service.Service]:
    """A service that listens on a port of loopback as well."""
    site = cli.Site(tmp_path_factory.mktemp("tls") / "site")
    listen = authority.listen(PORT, operators=["alice"], readers=["bob", "carol smith"])
    site.settings = {"service": {"listen": listen}}
    site.add_guest("db", emulator={"memory": "8M"})
    with service.running(site) as running:
        yield running


@pytest.fixture(autouse=True)
def _guests_end(mapsaved: service.Service) -> Iterator[None]:
    with service.emulated_ended(mapsaved.site):
        yield


def ask(
    authority: Authority,
    method: str = "GET",
    target: str = "/v1/guests",
    body: str | None = None,
    *,
    certificate: tuple[Path, Path] | None,
) -> tuple[int, str]:
    """Return status and body; raise OSError where the connection is refused."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=wait.LONG, context=context)
    kind = {} if body is None else {"Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request(method, target, body, kind)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


SAVE = '{"kind": "save", "guest": "db", "save": {"then": "resume"}}'


def test_an_operator_saves(mapsaved: service.Service, authority: Authority) -> None:
    alice = authority.issue("/CN=alice")
    assert ask(authority, certificate=alice)[0] == 200
    status, text = ask(authority, "POST", "/v1/operations", SAVE, certificate=alice)
    assert status == 202, text
    number = json.loads(text)["id"]
    found = mapsaved.ended(number)
    assert (found["state"], found["user"]) == ("done", "certificate 'alice'")
    for target, body in (("/v1/reload", None), ("/v1/operations", '{"kind": "recover"}')):
        status, text = ask(authority, "POST", target, body, certificate=alice)
        assert (status, json.loads(text)["error"]["id"]) == (403, "permission.role")


@pytest.mark.parametrize("name", ["bob", "carol smith"])
def test_a_reader_looks(mapsaved: service.Service, authority: Authority, name: str) -> None:
    reader = authority.issue(f"/O=somewhere/CN={name}")
    assert ask(authority, certificate=reader)[0] == 200
    status, text = ask(authority, "POST", "/v1/operations", SAVE, certificate=reader)
    assert (status, json.loads(text)["error"]["data"]["role"]) == (403, "reader")


@pytest.mark.parametrize(
    "subject", ["/CN=mallory", "/CN=Alice", "/CN=root", "/O=alice", "/CN=alice/CN=mallory"]
)
def test_a_name_that_is_not_configured_sees_nothing(
    mapsaved: service.Service, authority: Authority, subject: str
) -> None:
    status, text = ask(authority, certificate=authority.issue(subject))
    assert (status, json.loads(text)["error"]["id"]) == (403, "permission.role")


def test_no_certificate_no_connection(mapsaved: service.Service, authority: Authority) -> None:
    with pytest.raises(OSError, match=r"certificate required|reset|closed"):
        ask(authority, certificate=None)


def test_the_name_alone_is_no_proof(
    mapsaved: service.Service, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(OSError, match=r"unknown ca|reset|closed"):
        ask(authority, certificate=other.issue("/CN=alice"))


def test_plain_http_gets_no_answer(mapsaved: service.Service) -> None:
    with socket.create_connection(("127.0.0.1", PORT), timeout=wait.LONG) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(4096):
                answer += piece
    assert b"HTTP" not in answer


def test_old_tls_is_refused(mapsaved: service.Service, authority: Authority) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{PORT}", "-tls1_1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=wait.LONG,
    )
    assert done.returncode != 0


def _listening(pid: int) -> list[str]:
    """Return the TCP addresses that a process listens at, as /proc/net/tcp has them (proc(5))."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == "0A":
                found.append(fields[1])
    return found


def test_tcp_is_listened_at_only_where_it_was_asked_for(
    mapsaved: service.Service, site: cli.Site
) -> None:
    assert _listening(mapsaved.pid) == [f"0100007F:{PORT:04X}"]
    with service.running(site) as without:
        assert _listening(without.pid) == []


def test_nobody_is_administrator_over_tcp(mapsaved: service.Service, authority: Authority) -> None:
    for subject in ("/CN=alice", "/CN=root"):
        status, _ = ask(authority, "POST", "/v1/reload", certificate=authority.issue(subject))
        assert status == 403


def test_new_names_do_not_count_while_the_old_ca_is_in_force(
    mapsaved: service.Service, authority: Authority
) -> None:
    site = mapsaved.site
    before = site.settings["service"]["listen"]
    site.settings["service"]["listen"] = {**before, "operators": ["mallory"], "readers": []}
    try:
        site.write()
        for _ in range(2):
            answer = mapsaved.request("POST", "/v1/reload")
            assert answer.json() == {"needs_restart": ["service.listen"]}
            assert ask(authority, certificate=authority.issue("/CN=mallory"))[0] == 403
            assert ask(authority, certificate=authority.issue("/CN=bob"))[0] == 200
    finally:
        site.settings["service"]["listen"] = before
        site.write()


@pytest.mark.parametrize("key", ["certificate", "key", "clients"])
def test_a_file_that_cannot_be_used_is_named(
    authority: Authority, site: cli.Site, tmp_path: Path, key: str
) -> None:
    certificate, secret = authority.issue("/CN=mapsaved")
    files = {"certificate": certificate, "key": secret, "clients": authority.certificate}
    (tmp_path / "bad.pem").write_text("nothing")
    files[key] = tmp_path / "bad.pem"
    listen = {"address": f"127.0.0.1:{ports.reserved()}", **{k: str(v) for k, v in files.items()}}
    site.settings = {"service": {"listen": listen}}
    site.write()
    with processes.running(
        [*cli.COMMAND, "--config", str(site.config), "serve"], stderr=subprocess.PIPE, text=True
    ) as process:
        _, told = process.communicate(timeout=wait.LONG)
    assert process.returncode == 2, told
    assert "service.listen." in told
    assert "Traceback" not in told
