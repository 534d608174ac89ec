"""The interface of every storage backend, its values and its configuration.

``tests/contracts/test_storage.py`` checks every backend against these docstrings.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ..errors import (
    Conflict,
    InvalidKey,
    InvalidRequest,
    LimitExceeded,
    ObjectMissing,
    ScenefleetError,
    StorageUnavailable,
)
from .incoming import Appender, Bucket as Bucket, Incoming
from .keys import check_key, check_prefix
from .transfer import MiB, Source, appearing, local_errors, source_file, write_all

#: Called with (bytes done, bytes in all); an exception it raises stops the transfer and reaches the caller.
OnProgress = Callable[[int, int | None], None]

_BUCKET_NAME = re.compile(r"(?!.*\.[.-])(?!.*-\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
MAX_GET_BYTES = 64 * MiB


class StorageConfig(BaseModel):
    """Which backend, where, and how patient. Values are checked by ``open_storage``, in sentences."""

    model_config = ConfigDict(frozen=True)

    backend: Literal["local", "minio"] = "local"
    #: Folder that holds the buckets (local).
    root: Path | None = None
    #: ``host:port`` or a URL without a path; a URL's scheme overrides ``secure`` (minio).
    endpoint: str = ""
    #: The same server as browsers reach it, for presigned URLs; empty: ``endpoint`` (minio).
    public_endpoint: str = ""
    access_key: str = Field("", repr=False)
    secret_key: SecretStr = SecretStr("")
    secure: bool = False
    region: str = "us-east-1"
    bucket_uploads: str = "uploads"
    bucket_sidecars: str = "sidecars"
    bucket_tmp: str = "tmp"
    #: Longest wait for a connection, and for the next bytes on it, seconds; each is tried at most three times.
    connect_timeout_s: float = Field(3.0, gt=0)
    read_timeout_s: float = Field(30.0, gt=0)

    def bucket_names(self) -> dict[Bucket, str]:
        """The real name of the bucket that plays each role.

        Raises:
            InvalidRequest: a name breaks the rule of S3 (3 to 63 of a-z 0-9 . -), or two are the same.
        """
        names: dict[Bucket, str] = {
            "uploads": self.bucket_uploads,
            "sidecars": self.bucket_sidecars,
            "tmp": self.bucket_tmp,
        }
        for role, name in names.items():
            if not _BUCKET_NAME.fullmatch(name):
                raise InvalidRequest(
                    f"STORAGE_BUCKET_{role.upper()}={name!r} is not a bucket name: use 3 to 63 of a-z 0-9 . -"
                )
        if len(set(names.values())) < len(names):
            raise InvalidRequest(f"the buckets {', '.join(names.values())} must differ: name three buckets")
        return names


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStat:
    """What is known about an object without reading it."""

    size_bytes: int
    #: When it was stored, by the storage's own clock; aware, UTC.
    modified_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo(ObjectStat):
    """One line of a listing."""

    key: str


class Storage(ABC):
    """Objects by bucket role and key. Safe to share between threads, and to use in a child after a fork.

    Every method that takes a key raises InvalidKey for a malformed one. Every method may raise StorageUnavailable
    (an outage: the folder or server is away, a bucket is missing, no room) and, on minio, Permanent when the server
    refuses our credentials. An object appears whole or not at all, and replaces an older one of the same key. No key
    may lie "inside" another (``a/b`` and ``a/b/c``): a folder can't hold both.
    """

    def __init__(self, config: StorageConfig) -> None:
        """Raises InvalidRequest when a bucket's name is not acceptable."""
        self._config = config
        self._names = config.bucket_names()

    def put_file(self, bucket: Bucket, key: str, path: Path, content_type: str) -> None:
        """Store the file at ``path``, in memory that does not grow with its size.

        ``content_type`` reaches those who download by a presigned URL; the local backend has no use for it.

        Raises:
            InvalidRequest: there is no readable regular file at ``path``.
            Conflict: the file became shorter while it was being read.
        """
        check_key(key)
        with source_file(path) as source:
            self._put(bucket, key, source, content_type)

    def put_bytes(self, bucket: Bucket, key: str, data: bytes, content_type: str) -> None:
        """Store ``data``; see ``put_file``."""
        self._put(bucket, check_key(key), Source(io.BytesIO(data), len(data)), content_type)

    @abstractmethod
    def _put(self, bucket: Bucket, key: str, source: Source, content_type: str) -> None:
        """Store what ``source`` gives."""

    def get_file(
        self,
        bucket: Bucket,
        key: str,
        path: Path,
        *,
        max_bytes: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Copy an object to the file ``path``, in constant memory, and return its size in bytes.

        The file appears whole (temporary file beside it, then rename) or not at all; it is not fsynced, being
        meant for work, not for keeping.

        Raises:
            ObjectMissing: no such object.
            LimitExceeded: it has more than ``max_bytes`` bytes.
            InvalidRequest: the folder of ``path`` does not exist or can't be written.
        """
        done_bytes = 0
        with self._read(bucket, key, max_bytes) as (chunks, size_bytes), appearing(path) as target:
            for chunk in chunks:
                with local_errors(path):
                    write_all(target, chunk)
                done_bytes += len(chunk)
                if on_progress is not None:
                    on_progress(done_bytes, size_bytes)
        return done_bytes

    def get_bytes(
        self,
        bucket: Bucket,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        max_bytes: int = MAX_GET_BYTES,
    ) -> bytes:
        """Read ``length`` bytes (None: all that follow) from ``offset`` on; fewer, or none, where the object ends.

        Raises:
            ObjectMissing: no such object.
            LimitExceeded: more than ``max_bytes`` bytes would be read.
            InvalidRequest: ``offset`` or ``length`` is negative.
        """
        if offset < 0 or (length is not None and length < 0):
            raise InvalidRequest(
                f"offset {offset} and length {length} must not be negative: count bytes from 0"
            )
        with self._read(bucket, key, max_bytes, offset, length) as (chunks, _):
            return b"".join(chunks)

    @contextmanager
    def _read(
        self, bucket: Bucket, key: str, max_bytes: int | None, offset: int = 0, length: int | None = None
    ) -> Iterator[tuple[Iterator[bytes], int]]:
        """The bytes in chunks, and their number; a chunk that does not come, or one too many, is an outage."""
        with self._open(bucket, check_key(key), offset, length) as (chunks, size_bytes):
            if max_bytes is not None and size_bytes > max_bytes:
                raise LimitExceeded(
                    f"object {bucket}:{key} has {size_bytes} bytes, at most {max_bytes} are allowed: send less, "
                    "or raise the limit"
                )
            yield _complete(chunks, size_bytes, f"object {bucket}:{key}"), size_bytes

    @abstractmethod
    def _open(
        self, bucket: Bucket, key: str, offset: int, length: int | None
    ) -> AbstractContextManager[tuple[Iterator[bytes], int]]:
        """A range of an object in chunks, and the number of bytes that it should have."""

    @abstractmethod
    def stat(self, bucket: Bucket, key: str) -> ObjectStat:
        """Size and time of an object.

        Raises:
            ObjectMissing: no such object.
        """

    def exists(self, bucket: Bucket, key: str) -> bool:
        """Whether the object is there; an outage raises, it never reads as "no"."""
        try:
            self.stat(bucket, key)
        except ObjectMissing:
            return False
        return True

    def list(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose key begins with ``prefix`` (a string prefix, may be empty), in NO particular order.

        Memory stays flat however many there are. What is stored or deleted meanwhile may or may not be listed.
        Names that are not acceptable keys (put there by other programs) are left out, as no method could open them.
        """
        check_prefix(prefix)
        self._name(bucket)
        return self._list(bucket, prefix)

    @abstractmethod
    def _list(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose acceptable keys begin with ``prefix``."""

    @abstractmethod
    def delete(self, bucket: Bucket, key: str) -> None:
        """Remove an object; no error if there is none."""

    def delete_many(self, bucket: Bucket, keys: Sequence[str]) -> None:
        """Remove objects, in few calls where the backend knows how; no error for those that are not there."""
        for key in [check_key(key) for key in keys]:
            self.delete(bucket, key)

    def delete_prefix(self, bucket: Bucket, prefix: str) -> int:
        """Remove all objects under the folder ``prefix``, and return how many were removed.

        Raises:
            InvalidKey: ``prefix`` does not end with ``/`` or has fewer than two parts: too much would go.
        """
        if not isinstance(prefix, str) or not prefix.endswith("/"):
            raise InvalidKey(
                f"prefix {prefix!r} must end with '/', or keys that begin with the same characters would be deleted too"
            )
        check_prefix(prefix)
        if prefix.count("/") < 2:
            raise InvalidKey(
                f"prefix {prefix!r} is too wide to delete: it needs at least two parts, as in 'uploads/user/'"
            )
        return self._delete_prefix(bucket, prefix)

    @abstractmethod
    def _delete_prefix(self, bucket: Bucket, prefix: str) -> int:
        """Remove the objects under a folder of at least two parts; return how many."""

    def local_path(self, bucket: Bucket, key: str) -> Path | None:
        """The object's own file, to be read in place and never written; None where objects are not files here.

        Raises:
            ObjectMissing: no such object (local).
        """
        check_key(key)
        return None

    def open_file(self, bucket: Bucket, key: str) -> int | None:
        """A descriptor of the object's own file, to read and to close; None where objects are not files here.

        Raises:
            ObjectMissing: no such object (local).
        """
        check_key(key)
        return None

    def presign_put(self, bucket: Bucket, key: str, expires_s: int) -> str:
        """A URL to which anyone may PUT this one object during the next ``expires_s`` seconds (1 to 604800).

        The URL does not limit the size: look at ``stat`` before using what came.

        Raises:
            InvalidRequest: the backend has no URLs (local), or ``expires_s`` is out of range.
        """
        return self._presign("PUT", bucket, check_key(key), expires_s)

    def presign_get(
        self,
        bucket: Bucket,
        key: str,
        expires_s: int,
        *,
        download_name: str | None = None,
        content_type: str | None = None,
    ) -> str:
        """A URL from which anyone may GET this one object during the next ``expires_s`` seconds (1 to 604800).

        With ``download_name`` a browser saves the object under that name instead of showing it; with ``content_type`` it
        takes the object for that, whatever was said when it was stored.

        Raises:
            InvalidRequest: the backend has no URLs (local), or ``expires_s`` is out of range.
        """
        return self._presign("GET", bucket, check_key(key), expires_s, download_name, content_type)

    @abstractmethod
    def _presign(
        self,
        method: str,
        bucket: Bucket,
        key: str,
        expires_s: int,
        download_name: str | None = None,
        content_type: str | None = None,
    ) -> str:
        """A URL for one method."""

    def begin(self, bucket: Bucket, key: str, size_bytes: int, content_type: str, *, folder: str) -> Incoming:
        """Begin an object of ``size_bytes`` (1 or more) that arrives piece by piece; it appears at ``complete``.

        ``folder`` of the tmp bucket (``incoming/user/id/``) is for what the backend has to store beside it.
        """
        if size_bytes < 1:
            raise InvalidRequest(f"an object of {size_bytes} bytes can't arrive in pieces: store it whole")
        check_key(key)
        check_prefix(folder)
        handle = self._begin(bucket, key, content_type, folder)
        return Incoming(bucket=bucket, key=key, size_bytes=size_bytes, folder=folder, handle=handle)

    @abstractmethod
    def _begin(self, bucket: Bucket, key: str, content_type: str, folder: str) -> str:
        """Begin an object; return the backend's name for it."""

    @abstractmethod
    def received_bytes(self, incoming: Incoming) -> int:
        """How much of an incoming object is stored.

        Raises:
            ObjectMissing: it was completed, aborted or swept.
        """

    @abstractmethod
    def append(self, incoming: Incoming, *, fence: int) -> AbstractContextManager[Appender]:
        """A writer that goes on where the stored bytes end; a later one has a higher ``fence``.

        Raises:
            ObjectMissing: it was completed, aborted or swept.
        """

    def complete(self, incoming: Incoming) -> None:
        """Let the object appear whole; no error if it has appeared before (a folder tells by the size).

        Raises:
            Conflict: bytes are missing, or another object has this key.
            ObjectMissing: it was aborted or swept.
        """
        if self._has_appeared(incoming):
            return
        received = self.received_bytes(incoming)
        what = f"object {incoming.bucket}:{incoming.key}"
        if received != incoming.size_bytes:
            raise Conflict(f"{what} has {received} of {incoming.size_bytes} bytes: send the rest")
        if self.exists(incoming.bucket, incoming.key):
            raise Conflict(f"{what} exists already: choose another key")
        self._complete(incoming)

    @abstractmethod
    def _has_appeared(self, incoming: Incoming) -> bool:
        """Whether the object under its key is this one, complete."""

    @abstractmethod
    def _complete(self, incoming: Incoming) -> None:
        """Let the object appear, now that all bytes are stored."""

    @abstractmethod
    def abort(self, incoming: Incoming) -> None:
        """Remove what was received of an object that is not complete; no error if there is nothing."""

    @abstractmethod
    def sweep_incoming(self, bucket: Bucket, older_than_s: float) -> None:
        """Remove incoming objects that were begun (or, on a folder, last written) longer ago than that."""

    @abstractmethod
    def ensure_buckets(self) -> None:
        """Create what is missing: the root folder and the buckets. The only method that creates them.

        Call it when a fleet is set up, not whenever a worker starts: while a disk is not mounted it would make an
        empty storage beside it.
        """

    def check(self) -> None:
        """Find out whether the storage can be used.

        Raises:
            StorageUnavailable: it can't, for whatever reason; one sentence that says what to do.
        """
        try:
            self._check()
        except StorageUnavailable:
            raise
        except ScenefleetError as error:
            raise StorageUnavailable(str(error)) from error

    @abstractmethod
    def _check(self) -> None:
        """As ``check``, with an error of any class of ours."""

    @abstractmethod
    def describe(self) -> str:
        """Where the objects are, for people; without credentials."""

    def _name(self, bucket: Bucket) -> str:
        """The real name of a bucket."""
        try:
            return self._names[bucket]
        except KeyError:
            raise InvalidRequest(
                f"there is no bucket role {bucket!r}: use one of {', '.join(self._names)}"
            ) from None


def _complete(chunks: Iterator[bytes], size_bytes: int, what: str) -> Iterator[bytes]:
    done_bytes = 0
    for chunk in chunks:
        done_bytes += len(chunk)
        yield chunk
    if done_bytes != size_bytes:
        raise StorageUnavailable(
            f"{what} broke off after {done_bytes} of {size_bytes} bytes: it is read again"
        )
