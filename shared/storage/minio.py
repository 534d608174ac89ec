"""Objects on an S3 server (MinIO in docker-compose), over pooled connections with bounded waits.

A request is tried at most three times, each connection and each silence is limited, and what remains is one of our
errors. Credentials and signatures never appear in them. A whole answer is checked against its announced length.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.datatypes import Part
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from ..errors import InvalidRequest, ObjectMissing, StorageUnavailable
from .incoming import Appender, Incoming
from .keys import check_key, is_key
from .objects import Bucket, ObjectInfo, ObjectStat, Storage, StorageConfig
from .s3_client import check_connection, open_client
from .s3_errors import no_bucket, translate
from .transfer import CHUNK_BYTES, MiB, Source

MAX_EXPIRES_S = 7 * 24 * 3600  # the longest that Signature Version 4 allows
PART_BYTES = 8 * MiB  # at least; S3 allows 10,000 parts
MAX_PARTS = 10_000
PARALLEL_PARTS = 3  # parts in flight: storing takes about 5 * PART_BYTES of memory


class MinioStorage(Storage):
    """Implements ``Storage`` on any S3 server with path-style addresses."""

    def __init__(self, config: StorageConfig) -> None:
        """Raises InvalidRequest when endpoint, credentials or bucket names are missing or not acceptable."""
        self._address, self._public_address = check_connection(config)
        super().__init__(config)
        self._server = self._address[0]
        self._secrets = (config.secret_key.get_secret_value(), config.access_key)
        self._client: tuple[int, Minio] | None = None  # with the process that opened it

    def _put(self, bucket: Bucket, key: str, source: Source, content_type: str) -> None:
        with self._reported(bucket, key):
            self._connect().put_object(
                self._name(bucket),
                key,
                source,
                source.size_bytes,
                content_type=content_type,
                part_size=_part_bytes(source.size_bytes),
                num_parallel_uploads=PARALLEL_PARTS,
            )

    @contextmanager
    def _open(
        self, bucket: Bucket, key: str, offset: int, length: int | None
    ) -> Iterator[tuple[Iterator[bytes], int]]:
        if length == 0:
            self.stat(bucket, key)
            yield iter(()), 0
            return
        with self._reported(bucket, key):
            try:
                response = self._connect().get_object(
                    self._name(bucket), key, offset=offset, length=length or 0
                )
            except S3Error as error:
                if error.code != "InvalidRange":
                    raise
                response = None
        if response is None:  # the range begins where the object has ended
            yield iter(()), 0
            return
        try:
            announced = response.headers.get("content-length", "")
            if not announced.isdecimal():
                raise StorageUnavailable(
                    f"{self._server} does not say how long object {bucket}:{key} is: check it"
                )
            if (offset or length) and response.status != 206:
                raise StorageUnavailable(
                    f"{self._server} ignores ranges (object {bucket}:{key}): use one that knows them"
                )
            yield self._chunks(bucket, key, response), int(announced)
        finally:
            response.close()  # a body left unread must not go back to the pool
            response.release_conn()

    def _chunks(self, bucket: Bucket, key: str, response: BaseHTTPResponse) -> Iterator[bytes]:
        with self._reported(bucket, key):
            # Bytes as stored: an object with Content-Encoding must not be unpacked on the way.
            yield from response.stream(CHUNK_BYTES, decode_content=False)

    def stat(self, bucket: Bucket, key: str) -> ObjectStat:
        check_key(key)
        try:
            with self._reported(bucket, key):
                found = self._connect().stat_object(self._name(bucket), key)
        except ObjectMissing:
            # The answer to HEAD has no body: a missing bucket looks just the same.
            self._require_bucket(bucket)
            raise
        if found.size is None or found.last_modified is None:
            raise StorageUnavailable(
                f"{self._server} gives no size or time of object {bucket}:{key}: check it"
            )
        return ObjectStat(size_bytes=found.size, modified_at=found.last_modified)

    def _list(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        with self._reported(bucket, prefix):
            for found in self._connect().list_objects(self._name(bucket), prefix=prefix, recursive=True):
                name = found.object_name
                if name is None or found.size is None or found.last_modified is None:
                    raise StorageUnavailable(
                        f"{self._server} lists {bucket}:{prefix} without sizes or times: check it"
                    )
                if is_key(name):
                    yield ObjectInfo(key=name, size_bytes=found.size, modified_at=found.last_modified)

    def delete(self, bucket: Bucket, key: str) -> None:
        check_key(key)
        try:
            with self._reported(bucket, key):
                self._connect().remove_object(self._name(bucket), key)
        except ObjectMissing:
            return  # some servers say so, S3 does not

    def delete_many(self, bucket: Bucket, keys: Sequence[str]) -> None:
        if keys:
            self._remove(bucket, keys[0], [check_key(key) for key in keys])

    def _delete_prefix(self, bucket: Bucket, prefix: str) -> int:
        found = self._connect().list_objects(self._name(bucket), prefix=prefix, recursive=True)
        return self._remove(bucket, prefix, (one.object_name or "" for one in found))

    def _remove(self, bucket: Bucket, what: str, keys: Iterable[str]) -> int:
        """Remove objects, a thousand a call; return how many were named."""
        sent = 0

        def doomed() -> Iterator[DeleteObject]:
            nonlocal sent
            for key in keys:
                sent += 1
                yield DeleteObject(key)

        with self._reported(bucket, what):
            found = self._connect().remove_objects(self._name(bucket), doomed())
            errors = [error for error in found if error.code not in _GONE]
        if errors:
            raise StorageUnavailable(
                f"{self._server} could not delete {len(errors)} of {sent} objects of bucket {bucket} "
                f"({errors[0].code}): look at its health and at the rights of this access key"
            )
        return sent

    # minio-py offers multipart uploads only as a whole; its methods for one request each begin with an underscore
    # (docs/decisions/0018-tus-server.md). The contract tests use each of them.

    def _begin(self, bucket: Bucket, key: str, content_type: str, folder: str) -> str:
        with self._reported(bucket, key):
            headers = {"Content-Type": content_type, _ORIGIN: folder}
            handle: str = self._connect()._create_multipart_upload(self._name(bucket), key, headers)
        return handle

    def received_bytes(self, incoming: Incoming) -> int:
        parts = self._parts(incoming)
        tail = self._tail(incoming, len(parts))
        stored: int = sum(part.size for part in parts)
        return stored + (tail.size_bytes if tail else 0)

    @contextmanager
    def append(self, incoming: Incoming, *, fence: int) -> Iterator[Appender]:
        parts = self._parts(incoming)
        tail = self._tail(incoming, len(parts))
        waiting = self.get_bytes("tmp", tail.key) if tail else b""
        yield _PartAppender(
            part_bytes=_part_bytes(incoming.size_bytes),
            stored=[part.size for part in parts],
            waiting=waiting,
            put_part=lambda number, data: self._put_part(incoming, number, data),
            put_tail=lambda parts, data: self.put_bytes(
                "tmp", _tail_key(incoming, parts, fence), data, _OCTETS
            ),
        )

    def _put_part(self, incoming: Incoming, number: int, data: bytes) -> None:
        with self._reported(incoming.bucket, incoming.key):
            self._connect()._upload_part(
                self._name(incoming.bucket), incoming.key, data, None, incoming.handle, number
            )

    def _parts(self, incoming: Incoming) -> list[Part]:
        """The parts that are stored, from the first on without a gap."""
        check_key(incoming.key)
        found: list[Part] = []
        with self._reported(incoming.bucket, incoming.key):
            try:
                while True:
                    page = self._connect()._list_parts(
                        self._name(incoming.bucket),
                        incoming.key,
                        incoming.handle,
                        part_number_marker=str(found[-1].part_number) if found else None,
                    )
                    found += page.parts
                    if not page.is_truncated or not page.parts:
                        break
            except S3Error as error:
                if error.code not in _NO_UPLOAD:
                    raise
                raise ObjectMissing(
                    f"nothing is being received for object {incoming.bucket}:{incoming.key}: begin again"
                ) from error
        return [part for number, part in enumerate(found, 1) if part.part_number == number]

    def _tail(self, incoming: Incoming, parts: int) -> ObjectInfo | None:
        """What follows so many parts, of the latest writer."""
        found = self.list("tmp", f"{incoming.folder}tail.{parts}.")
        return max(found, key=lambda info: int(info.key.rpartition(".")[2]), default=None)

    def _has_appeared(self, incoming: Incoming) -> bool:
        # Not by the upload's absence: Swift lists the parts of an upload that is complete.
        try:
            with self._reported(incoming.bucket, incoming.key):
                found = self._connect().stat_object(self._name(incoming.bucket), check_key(incoming.key))
        except ObjectMissing:
            return False
        origin = (found.metadata or {}).get(_ORIGIN)
        return found.size == incoming.size_bytes and origin == incoming.folder

    def _complete(self, incoming: Incoming) -> None:
        parts = self._parts(incoming)
        tail = self._tail(incoming, len(parts))
        if tail is not None:
            self._put_part(incoming, len(parts) + 1, self.get_bytes("tmp", tail.key))
            parts = self._parts(incoming)
        with self._reported(incoming.bucket, incoming.key):
            self._connect()._complete_multipart_upload(
                self._name(incoming.bucket), incoming.key, incoming.handle, parts
            )
        self._remove_tails(incoming)

    def abort(self, incoming: Incoming) -> None:
        if not self._has_appeared(incoming):
            self._abort(incoming.bucket, incoming.key, incoming.handle)
        self._remove_tails(incoming)

    def _remove_tails(self, incoming: Incoming) -> None:
        self.delete_many("tmp", [info.key for info in self.list("tmp", f"{incoming.folder}tail.")])

    def _abort(self, bucket: Bucket, key: str, handle: str) -> None:
        with self._reported(bucket, key):
            try:
                self._connect()._abort_multipart_upload(self._name(bucket), key, handle)
            except S3Error as error:
                if error.code not in _NO_UPLOAD:
                    raise

    def sweep_incoming(self, bucket: Bucket, older_than_s: float) -> None:
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        key = handle = None
        while True:
            with self._reported(bucket, None):
                page = self._connect()._list_multipart_uploads(
                    # Swift takes no delimiter for one that is everywhere; no key has a backslash.
                    self._name(bucket),
                    delimiter="\\",
                    key_marker=key,
                    upload_id_marker=handle,
                )
            for upload in page.uploads:
                if upload.initiated_time is not None and upload.initiated_time < before:
                    self._abort(bucket, upload.object_name, upload.upload_id)
            key, handle = page.next_key_marker, page.next_upload_id_marker
            if not page.is_truncated or not key:
                return

    def _presign(
        self,
        method: str,
        bucket: Bucket,
        key: str,
        expires_s: int,
        download_name: str | None = None,
        content_type: str | None = None,
    ) -> str:
        if not 1 <= expires_s <= MAX_EXPIRES_S:
            raise InvalidRequest(
                f"a presigned URL can't expire after {expires_s} s: choose 1 to {MAX_EXPIRES_S} s (7 days)"
            )
        headers = {}
        if download_name is not None:
            # RFC 6266: percent-encoded UTF-8, so no name can break out of the header.
            headers["response-content-disposition"] = (
                f"attachment; filename*=UTF-8''{quote(download_name, safe='')}"
            )
        if content_type is not None:
            headers["response-content-type"] = content_type
        # For the address that browsers use: a signature covers the host name.
        signer = open_client(self._config, self._public_address, connects=False)
        url: str = signer.get_presigned_url(
            method,
            self._name(bucket),
            key,
            expires=timedelta(seconds=expires_s),
            response_headers=headers,
        )
        return url

    def ensure_buckets(self) -> None:
        for role, name in self._names.items():
            with self._reported(role, None):
                try:
                    if not self._connect().bucket_exists(name):
                        self._connect().make_bucket(name, location=self._config.region)
                except S3Error as error:
                    if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                        raise  # otherwise another node was faster

    def _check(self) -> None:
        for role in self._names:
            self._require_bucket(role)

    def describe(self) -> str:
        return f"S3 server {self._server}"

    def _require_bucket(self, bucket: Bucket) -> None:
        with self._reported(bucket, None):
            if not self._connect().bucket_exists(self._name(bucket)):
                raise no_bucket(self._server, self._name(bucket))

    def _connect(self) -> Minio:
        """This process's client: a child after a fork must not share its parent's sockets."""
        opened = self._client
        if opened is None or opened[0] != os.getpid():
            # Two threads may both come here; then one client is used once and dropped.
            opened = (os.getpid(), open_client(self._config, self._address))
            self._client = opened
        return opened[1]

    @contextmanager
    def _reported(self, bucket: Bucket, key: str | None) -> Iterator[None]:
        """Turn the errors of ``minio`` and ``urllib3`` into ours."""
        try:
            yield
        except (MinioException, HTTPError, ParseError, UnicodeDecodeError) as error:
            ours = translate(
                error,
                server=self._server,
                bucket=self._name(bucket),
                what=f"bucket {self._name(bucket)}" if key is None else f"object {bucket}:{key}",
                secrets=self._secrets,
            )
            # A proxy's error page may quote anything, and a traceback prints causes too.
            indiscreet = isinstance(error, InvalidResponseError) or any(
                s in str(error) for s in self._secrets
            )
            raise ours from (None if indiscreet else error)


class _PartAppender(Appender):
    """Parts of one size as they fill, and an object for what is shorter; memory for two parts at most."""

    def __init__(
        self,
        *,
        part_bytes: int,
        stored: Sequence[int],
        waiting: bytes,
        put_part: Callable[[int, bytes], None],
        put_tail: Callable[[int, bytes], None],
    ) -> None:
        self._part_bytes = part_bytes
        self._parts = len(stored)
        self._waiting = bytearray(waiting)
        self._dirty = False
        self._put_part = put_part
        self._put_tail = put_tail
        self.offset_bytes = sum(stored) + len(waiting)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._part_bytes - len(self._waiting)]
            self._waiting += taken
            self._dirty = True
            if len(self._waiting) == self._part_bytes:
                self._put_part(self._parts + 1, bytes(self._waiting))
                self._parts += 1
                self._waiting.clear()
                self._dirty = False
            self.offset_bytes += len(taken)
            view = view[len(taken) :]

    def flush(self) -> None:
        if self._dirty:
            self._put_tail(self._parts, bytes(self._waiting))
            self._dirty = False


#: Metadata of an object that arrived in pieces: the folder that it was begun with.
_ORIGIN = "x-amz-meta-incoming"
_OCTETS = "application/octet-stream"
_NO_UPLOAD = frozenset({"NoSuchUpload", "NoSuchKey"})
_GONE = frozenset({"NoSuchKey", "NoSuchVersion"})


def _part_bytes(size_bytes: int) -> int:
    """The smallest whole number of MiB that needs no more parts than S3 allows."""
    return max(PART_BYTES, -(-size_bytes // (MAX_PARTS * MiB)) * MiB)


def _tail_key(incoming: Incoming, parts: int, fence: int) -> str:
    """Where the bytes after so many parts are; a writer that was given up has a lower fence."""
    return f"{incoming.folder}tail.{parts}.{fence}"
