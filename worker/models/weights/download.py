"""Downloads one file to a partial file, and resumes interrupted transfers, also in a later process.

huggingface_hub's own download restarts in every process and deletes the old file first. A note beside a partial file names the
file it is part of.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import ModelUnavailable
from shared.permissions import FILE_MODE, make_private_folder
from worker.models.weights.remote import TIMEOUTS_S, Remote, describe, import_hub

CHUNK_BYTES = 1 << 18
#: Pauses before the next attempt, seconds; after as many attempts in a row without progress the download fails.
PAUSES_S = (0.5, 1.0, 2.0, 4.0)

#: Called with the bytes received and the total (None: unknown).
Progress = Callable[[int, int | None], None]


class _Broken(Exception):
    """This attempt ended early; another may go on."""


class Download:
    """Downloads one file to `part`, which no other process may write at the same time."""

    def __init__(self, remote: Remote, part: Path, progress: Progress) -> None:
        self._remote, self._size = remote, remote.size_bytes
        self._part = part
        self._note = part.with_name(f"{part.name}.json")
        self._progress = progress
        self._hash = hashlib.sha256()
        self._bytes = 0

    def run(self) -> str:
        """Download the missing part. Returns: sha256 of the whole file, which is then `part`.

        Raises: ModelUnavailable, in a clause; what was fetched stays for the next attempt.
        """
        try:
            self._continue()
            if self._size is not None and self._free_bytes() < self._size - self._bytes:
                raise ModelUnavailable(self._no_room())
            self._fetch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ModelUnavailable(self._no_room()) from error
            raise ModelUnavailable(
                f"{error.filename or self._part} can't be written ({error.strerror or error})"
            ) from error
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Remove the partial file, whose content is wrong."""
        self._part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _continue(self) -> None:
        """Continue an earlier attempt, if its partial file belongs to this file."""
        make_private_folder(self._part.parent)
        note = {"url": self._remote.url, "tag": self._remote.tag}
        try:
            same = bool(self._remote.tag) and json.loads(self._note.read_text(encoding="utf-8")) == note
        except (FileNotFoundError, ValueError):
            same = False
        if not same or (
            self._size is not None and self._part.exists() and self._part.stat().st_size > self._size
        ):
            self.discard()
            self._note.write_text(json.dumps(note), encoding="utf-8")
        self._part.touch(FILE_MODE)
        with self._part.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._bytes += len(chunk)
        self._progress(self._bytes, self._size)

    def _restart(self) -> None:
        os.truncate(self._part, 0)
        self._hash, self._bytes = hashlib.sha256(), 0

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._part.parent).free

    def _no_room(self) -> str:
        needs = f"needs {self._size - self._bytes:,} bytes more" if self._size is not None else "needs more"
        return (
            f"no room in {self._part.parent} for {self._remote.url}: {needs}, {self._free_bytes():,} are free; make room, or "
            "set MODELS_DIR"
        )

    def _fetch(self) -> None:
        failures = 0
        while self._size is None or self._bytes < self._size:
            before = self._bytes
            try:
                self._stream()
                break
            except _Broken as broken:
                failures = 0 if self._bytes > before else failures + 1
                if failures > len(PAUSES_S):
                    of = f" of {self._size:,}" if self._size is not None else ""
                    raise ModelUnavailable(
                        f"{self._remote.url} broke off after {self._bytes:,}{of} bytes ({broken}); run the same command "
                        "again, it goes on from there"
                    ) from broken
                time.sleep(PAUSES_S[max(0, failures - 1)])
        if not self._bytes:
            raise ModelUnavailable(f"{self._remote.url} is empty: correct source or files in models.yaml")

    def _stream(self) -> None:
        """One request. Returns when the server has sent everything."""
        hub = import_hub()
        headers = {**self._remote.headers, "Accept-Encoding": "identity"}
        if self._bytes:
            headers["Range"] = f"bytes={self._bytes}-"
            if self._remote.if_range:
                headers["If-Range"] = self._remote.if_range
        try:
            with hub.get_session().stream(
                "GET", self._remote.url, headers=headers, follow_redirects=True, timeout=TIMEOUTS_S
            ) as response:
                self._accept(response)
                self._write(response)
        except hub.errors.HTTPError as error:
            raise _Broken(describe(error)) from error
        if self._size is not None and self._bytes < self._size:
            raise _Broken("the server ended early")

    def _accept(self, response: Any) -> None:
        status = response.status_code
        if status == 416:
            self._restart()
            raise _Broken("HTTP 416")
        if status in (408, 429) or status >= 500:
            raise _Broken(f"HTTP {status}")
        if status >= 400:
            raise ModelUnavailable(f"{self._remote.url} was not given (HTTP {status}): correct models.yaml")
        starts_right = response.headers.get("Content-Range", "").startswith(f"bytes {self._bytes}-")
        if self._bytes and not (status == 206 and starts_right):
            self._restart()
            if status == 206:
                raise _Broken("the server sent another part than was asked for")

    def _write(self, response: Any) -> None:
        with self._part.open("ab") as stream:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                if self._size is not None and self._bytes + len(chunk) > self._size:
                    self._restart()
                    raise ModelUnavailable(
                        f"{self._remote.url} sends more than the {self._size:,} bytes it announced; try again later"
                    )
                stream.write(chunk)
                self._take(chunk)
            stream.flush()
            os.fsync(stream.fileno())
