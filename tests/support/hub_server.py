"""A stand-in for the model hub on the loopback: enough of its HTTP interface for huggingface_hub, with faults on demand.

Like the real one it answers for a small file itself, with git's name of the content as ETag, and sends the asker of a large
one on to another origin (there a CDN), naming the content's sha256; the token must not travel there. `/files/...` is an
ordinary web server. Every request is logged, with the Range it asked for.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

#: Files from here on are "large": sent by the other origin.
LARGE_BYTES = 100_000
_RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    #: The Range header; empty: the whole.
    range: str
    authorization: str
    status: int


@dataclass
class Fault:
    """What goes wrong with the next `times` answers to `method` whose path ends in `file`.

    drop: the connection ends after `after_bytes` of the body. hold: the body stops there until `release` is set. status:
    this instead of the file. other: bytes of the right number but another content. ignore_range: the whole file, whatever
    part was asked for.
    """

    file: str
    kind: Literal["drop", "hold", "status", "other", "ignore_range"]
    after_bytes: int = 0
    status: int = 500
    error_code: str = ""
    times: int = 1
    method: str = "GET"
    #: Seen by the holder: the body has come to its pause.
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


def make_certificate(path: Path) -> Path:
    """Write a certificate of this machine's loopback names, signed by itself, with its key; returns the path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    return path


class HubServer:
    """Use as a context. `url` is the hub's, for HF_ENDPOINT."""

    def __init__(self, certificate: Path | None = None) -> None:
        """With a certificate and its key in one file, both servers speak TLS."""
        #: repository -> commit -> file -> content
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        #: (repository, branch) -> commit
        self.branches: dict[tuple[str, str], str] = {}
        #: Repositories that want a token: this one.
        self.tokens: dict[str, str] = {}
        #: Path under /files/ -> content.
        self.files: dict[str, bytes] = {}
        #: Another server that large files are asked of, instead of ours.
        self.redirect_to = ""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
            for _ in range(2)
        ]
        scheme = "http"
        if certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            for server in self._servers:
                server.socket = context.wrap_socket(server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._servers[0].server_port}"
        # By another host name: to some releases of huggingface_hub another port alone is no other origin.
        self.cdn_url = f"{scheme}://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for fault in self.faults:
            fault.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files, all there are, the head of a branch. Returns the commit."""
        content = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{repository} {branch}".encode() + content).hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.branches[repository, branch] = commit
        return commit

    def fail(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def gets(self, file: str) -> list[Request]:
        """The requests for the bytes of a file that were answered with some."""
        with self.lock:
            return [
                request
                for request in self.requests
                if request.method == "GET" and request.path.endswith(file) and request.status in (200, 206)
            ]

    def take_fault(self, method: str, path: str, *, status: bool) -> Fault | None:
        """The fault of this answer: one that replaces it, or one in sending the file."""
        with self.lock:
            for fault in self.faults:
                fits = fault.method == method and path.endswith(fault.file)
                if fits and fault.times > 0 and (fault.kind == "status") == status:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return None

    def do_GET(self) -> None:
        path = unquote(self.path)
        fault = self.hub.take_fault(self.command, path, status=True)
        if fault is not None:
            self._refuse(fault.status, fault.error_code)
        elif path.startswith("/files/"):
            content = self.hub.files.get(path.removeprefix("/files/"))
            if content is None:
                self._refuse(404)
            else:
                etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
                self._send(content, {"ETag": etag})
        elif path.startswith("/cdn/"):
            self._send(self._stored(path.split("/")[2]), {"ETag": '"of-the-cdn"'})
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(*match.groups())
        else:
            self._refuse(404)

    do_HEAD = do_GET

    def _resolve(self, repository: str, revision: str, file: str) -> None:
        commits = self.hub.commits.get(repository)
        if commits is None:
            return self._refuse(401, "RepoNotFound")
        token = self.hub.tokens.get(repository)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            return self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        commit = self.hub.branches.get((repository, revision), revision)
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        content = commits[commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._refuse(404, "EntryNotFound", headers)
        if len(content) < LARGE_BYTES:
            name = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            return self._send(content, {"ETag": f'"{name}"', **headers})
        sha256 = hashlib.sha256(content).hexdigest()
        location = f"{self.hub.redirect_to or self.hub.cdn_url}/cdn/{sha256}/{file}"
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "Location": location}
        return self._start(302, 0, headers | linked)

    def _stored(self, sha256: str) -> bytes:
        every = (files.values() for commits in self.hub.commits.values() for files in commits.values())
        return next(found for found in chain(*every) if hashlib.sha256(found).hexdigest() == sha256)

    def _refuse(self, status: int, error_code: str = "", headers: Mapping[str, str] | None = None) -> None:
        extra = {"X-Error-Code": error_code} if error_code else {}
        self._start(status, 0, {**(headers or {}), **extra})

    def _start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        sent = self.headers.get
        asked = Request(
            self.command, unquote(self.path), sent("Range", ""), sent("Authorization", ""), status
        )
        with self.hub.lock:
            self.hub.requests.append(asked)
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, headers: Mapping[str, str]) -> None:
        """The file, or the part asked for (`bytes=N-`), as far as a fault lets it."""
        fault = self.hub.take_fault(self.command, unquote(self.path), status=False)
        kind = fault.kind if fault is not None else None
        if kind == "other":
            content = bytes(byte ^ 1 for byte in content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        start = int(asked[1]) if asked and unchanged and kind != "ignore_range" else 0
        if start and start >= len(content):
            self._start(416, 0, {"Content-Range": f"bytes */{len(content)}"})
            return
        body = content[start:]
        partial = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._start(206 if start else 200, len(body), {"Accept-Ranges": "bytes", **headers, **partial})
        if self.command == "HEAD":
            return
        try:
            if fault is None or kind not in ("drop", "hold"):
                self.wfile.write(body)
                return
            self.wfile.write(body[: fault.after_bytes])
            self.wfile.flush()
            fault.reached.set()
            if kind == "hold" and fault.release.wait(60):
                self.wfile.write(body[fault.after_bytes :])
        except (BrokenPipeError, ConnectionResetError):
            pass  # The asker was killed.
        finally:
            if kind in ("drop", "hold"):
                self.close_connection = True
