"""A certificate authority of its own."""

import datetime
import subprocess
from pathlib import Path


class Authority:
    """A CA with its certificates, made by openssl(1).

    Without ``purposes`` a certificate has no extended key usage.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        own = ("-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=a CA", "-days", "2")
        self._run("req", *own, "-addext", "keyUsage=critical,keyCertSign,cRLSign", *_KEY)

    @property
    def certificate(self) -> Path:
        """What those who trust it are given."""
        return self.directory / "ca.pem"

    def issue(self, subject: str, purposes: str | None = "clientAuth") -> tuple[Path, Path]:
        """Return certificate and key for a subject such as ``/CN=alice``."""
        name = f"{subject.replace('/', '_')}-{purposes}"
        key, request, certificate = (f"{name}.{each}" for each in ("key", "csr", "pem"))
        self._run("req", "-keyout", key, "-out", request, "-subj", subject, *_KEY)
        extensions = self.directory / "extensions"
        usage = f"extendedKeyUsage={purposes}\n" if purposes else ""
        extensions.write_text(f"subjectAltName=IP:127.0.0.1\n{usage}")
        by = ("-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        files = ("-in", request, "-out", certificate, "-extfile", "extensions")
        self._run("x509", "-req", *by, *files)
        return self.directory / certificate, self.directory / key

    def listen(self, port: int, **roles: list[str]) -> dict[str, object]:
        """Return ``service.listen`` for a port of loopback, with who has which role."""
        certificate, key = self.issue("/CN=mapsaved", "serverAuth")
        return {
            "address": f"127.0.0.1:{port}",
            "certificate": str(certificate),
            "key": str(key),
            "clients": str(self.certificate),
            **roles,
        }

    def revoke(self, *certificates: Path, days: int = 1) -> Path:
        """Return the revocation list that holds ``certificates`` and is current for ``days``."""
        (self.directory / "index.txt").touch()
        (self.directory / "ca.cnf").write_text(
            "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\ndefault_md=sha256\n"
        )
        own = ["ca", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.pem"]
        for each in certificates:
            self._run(*own, "-revoke", str(each))
        now = datetime.datetime.now(datetime.UTC)
        dates = [now - datetime.timedelta(days=2), now + datetime.timedelta(days=days)]
        last, end = (each.strftime("%Y%m%d%H%M%SZ") for each in dates)
        revoked = self.directory / "revoked.pem"
        validity = ("-crl_lastupdate", last, "-crl_nextupdate", end)
        self._run(*own, "-gencrl", "-out", str(revoked), *validity)
        return revoked

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            ["openssl", *words], cwd=self.directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
