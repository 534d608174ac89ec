"""The folder one ``scenefleet up`` owns: its files, and the lock that keeps a second one out.

A lock, not a pid file, says whether ``up`` runs: the kernel drops it however the process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import IO, Any

from shared import permissions
from shared.errors import Conflict, InvalidRequest
from shared.settings import Settings, load_settings

SECRET_BYTES = 24


class Home:
    """Paths below ``$SCENEFLEET_HOME``; nothing is created before ``acquire``."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.home
        self.run_file = settings.run_file
        self.logs = self.root / "logs"
        self.postgres = self.root / "postgres"
        self.redis = self.root / "redis"
        self.secrets_file = self.root / "secrets.json"
        self.supervisor_config = self.root / "supervisor.conf"
        self.supervisor_pid = self.root / "supervisor.pid"
        self.lock_file = self.root / "up.lock"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Create the folder and take its lock for as long as this process lives.

        Raises:
            Conflict: another ``scenefleet up`` runs in this folder.
            InvalidRequest: the folder can't be created or written, or others can read it.
        """
        permissions.require_private(self.root, "SCENEFLEET_HOME")
        try:
            permissions.make_private_folder(self.root)
            permissions.make_private_folder(self.logs)
            for path in (self.logs, self.redis, self.root / "work", self.root / "storage"):
                # Made by an earlier version.
                permissions.tighten(path)
            handle = self.lock_file.open("a+")
            permissions.tighten(self.lock_file, permissions.FILE_MODE)
        except OSError as error:
            raise InvalidRequest(
                f"SCENEFLEET_HOME={str(self.root)!r} can't be used ({error.strerror}): name a folder you can write to"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = self.owner_pid()
            handle.close()
            raise Conflict(
                f"`scenefleet up` already runs in {self.root} (process {owner}): use it, or stop it with `scenefleet down`"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        self._lock = handle

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    @property
    def owned(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def is_locked(self) -> bool:
        """Whether a live ``scenefleet up`` owns this folder."""
        try:
            with self.lock_file.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def owner_pid(self) -> int | None:
        """The pid of the process that holds the lock; None if it wrote none."""
        try:
            text = self.lock_file.read_text().strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() else None

    def secret(self, name: str) -> str:
        """A random password, created once and kept in a file that only its owner can read."""
        known: dict[str, str] = {}
        if self.secrets_file.is_file():
            known = json.loads(self.secrets_file.read_text())
        if name not in known:
            known[name] = secrets.token_urlsafe(SECRET_BYTES)
            write_private(self.secrets_file, known)
        return known[name]

    def write_run(self, run: dict[str, Any]) -> None:
        """Publish the running services' addresses to every other process of this user."""
        write_private(self.run_file, run)

    def read_run(self) -> dict[str, Any]:
        """The content of the run file; empty if there is none."""
        try:
            run: dict[str, Any] = json.loads(self.run_file.read_text())
        except FileNotFoundError:
            return {}
        return run

    def remove_run(self) -> None:
        self.run_file.unlink(missing_ok=True)


def configured_settings() -> Settings:
    """The settings of the environment, without the servers that an `up` runs (or ran) here.

    Raises:
        InvalidRequest: a value is not acceptable.
    """
    load_settings()  # raises InvalidRequest with one sentence
    return Settings()


def write_private(path: Path, value: dict[str, Any]) -> None:
    """Write JSON that only the owner can read, whole or not at all."""
    permissions.write_private(path, json.dumps(value, indent=1) + "\n")
