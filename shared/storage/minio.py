"""Objects on an S3 server (MinIO in docker-compose), over pooled connections with bounded waits.

A request is tried at most three times, each connection and each silence is limited, and what remains is one of our
errors. Credentials and signatures never appear in them. A whole answer is checked against its announced length.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from ..errors import Conflict, InvalidKey, InvalidRequest, ObjectMissing, ScenefleetError, StorageUnavailable
from .keys import check_key, check_prefix
from .objects import (
    MAX_GET_BYTES,
    Bucket,
    MiB,
    ObjectInfo,
    ObjectStat,
    OnProgress,
    Storage,
    StorageConfig,
    check_expires,
    check_folder_prefix,
    check_range,
)
from .s3_client import check_connection, open_client, open_signer, server_name
from .s3_errors import no_bucket, translate
from .transfer import CHUNK_BYTES, check_size, receive, source_file

PART_BYTES = 8 * MiB  # at least; S3 allows 10,000 parts
MAX_PARTS = 10_000
PARALLEL_PARTS = 3  # parts in flight: storing takes about 5 * PART_BYTES of memory


class MinioStorage(Storage):
    """Implements ``Storage`` on any S3 server with path-style addresses."""

    def __init__(self, config: StorageConfig) -> None:
        """Raises InvalidRequest when endpoint, credentials or bucket names are missing or not acceptable."""
        check_connection(config)
        self._config = config
        self._secrets = (config.secret_key.get_secret_value(), config.access_key)
        self._names = config.bucket_names()
        self._server = server_name(config)
        self._client: tuple[int, Minio] | None = None  # with the process that opened it

    # --- writing

    def put_file(self, bucket: Bucket, key: str, path: Path, content_type: str) -> None:
        check_key(key)
        with source_file(path) as (source, size_bytes), self._reported(bucket, key):
            try:
                self._connect().put_object(
                    self._name(bucket),
                    key,
                    source,
                    size_bytes,
                    content_type=content_type,
                    part_size=_part_bytes(size_bytes),
                    num_parallel_uploads=PARALLEL_PARTS,
                )
            except OSError as error:
                if os.fstat(source.fileno()).st_size < size_bytes:
                    raise Conflict(
                        f"file {path} became shorter while it was stored: store it once it is complete"
                    ) from error
                raise InvalidRequest(f"file {path} can't be read ({error}): check its disk") from error

    def put_bytes(self, bucket: Bucket, key: str, data: bytes, content_type: str) -> None:
        check_key(key)
        with self._reported(bucket, key):
            self._connect().put_object(
                self._name(bucket),
                key,
                io.BytesIO(data),
                len(data),
                content_type=content_type,
                part_size=_part_bytes(len(data)),
            )

    # --- reading

    def get_file(
        self,
        bucket: Bucket,
        key: str,
        path: Path,
        *,
        max_bytes: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> int:
        with self._open(bucket, key) as (response, size_bytes):
            return receive(
                path,
                self._chunks(bucket, key, response),
                size_bytes=size_bytes,
                max_bytes=max_bytes,
                on_progress=on_progress,
                source=f"object {bucket}:{key}",
            )

    def get_bytes(
        self,
        bucket: Bucket,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        max_bytes: int = MAX_GET_BYTES,
    ) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.stat(bucket, key)
            return b""
        try:
            with self._open(bucket, key, offset=offset, length=length) as (response, size_bytes):
                check_size(size_bytes, max_bytes, f"object {bucket}:{key}")
                data = b"".join(self._chunks(bucket, key, response))
        except _PastTheEnd:
            return b""
        if len(data) != size_bytes:
            raise StorageUnavailable(
                f"object {bucket}:{key} broke off after {len(data)} of {size_bytes} bytes: it is read again"
            )
        return data

    @contextmanager
    def _open(
        self, bucket: Bucket, key: str, *, offset: int = 0, length: int | None = None
    ) -> Iterator[tuple[BaseHTTPResponse, int]]:
        """The answer to a GET, its body not yet read, and the number of bytes announced."""
        check_key(key)
        with self._reported(bucket, key):
            response = self._connect().get_object(self._name(bucket), key, offset=offset, length=length or 0)
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
            yield response, int(announced)
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
            self._require_bucket(
                bucket
            )  # the answer to HEAD has no body: a missing bucket looks just the same
            raise
        if found.size is None or found.last_modified is None:
            raise StorageUnavailable(
                f"{self._server} gives no size or time of object {bucket}:{key}: check it"
            )
        return ObjectStat(size_bytes=found.size, modified_at=found.last_modified)

    def local_path(self, bucket: Bucket, key: str) -> Path | None:
        check_key(key)
        return None

    # --- listing and deleting

    def list(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        self._name(bucket)
        return self._listed(bucket, prefix)

    def _listed(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        with self._reported(bucket, prefix):
            for found in self._connect().list_objects(self._name(bucket), prefix=prefix, recursive=True):
                name = found.object_name
                if name is None or found.size is None or found.last_modified is None:
                    raise StorageUnavailable(
                        f"{self._server} lists {bucket}:{prefix} without sizes or times: check it"
                    )
                if _is_key(name):
                    yield ObjectInfo(key=name, size_bytes=found.size, modified_at=found.last_modified)

    def delete(self, bucket: Bucket, key: str) -> None:
        check_key(key)
        try:
            with self._reported(bucket, key):
                self._connect().remove_object(self._name(bucket), key)
        except ObjectMissing:
            return  # some servers say so, S3 does not

    def delete_many(self, bucket: Bucket, keys: Sequence[str]) -> None:
        doomed = [DeleteObject(check_key(key)) for key in keys]
        if not doomed:
            return
        # A thousand a call.
        with self._reported(bucket, keys[0]):
            found = self._connect().remove_objects(self._name(bucket), doomed)
            errors = [error for error in found if error.code not in _GONE]
        if errors:
            raise StorageUnavailable(
                f"{self._server} could not delete {len(errors)} of {len(doomed)} objects of bucket {bucket} "
                f"({errors[0].code}): look at its health and at the rights of this access key"
            )

    def delete_prefix(self, bucket: Bucket, prefix: str) -> int:
        check_folder_prefix(prefix)
        client, name = self._connect(), self._name(bucket)
        sent = 0

        def doomed() -> Iterator[DeleteObject]:
            nonlocal sent
            for found in client.list_objects(name, prefix=prefix, recursive=True):
                sent += 1
                yield DeleteObject(found.object_name or "")

        with self._reported(bucket, prefix):
            errors = [error for error in client.remove_objects(name, doomed()) if error.code not in _GONE]
        if errors:
            raise StorageUnavailable(
                f"{self._server} could not delete {len(errors)} of {sent} objects under {bucket}:{prefix} "
                f"({errors[0].code}): look at its health and at the rights of this access key"
            )
        return sent

    # --- the storage as a whole

    def presign_put(self, bucket: Bucket, key: str, expires_s: int) -> str:
        return self._presign("PUT", bucket, key, expires_s, {})

    def presign_get(
        self, bucket: Bucket, key: str, expires_s: int, *, download_name: str | None = None
    ) -> str:
        answer = {}
        if download_name is not None:
            # RFC 6266: percent-encoded UTF-8, so no name can break out of the header.
            answer["response-content-disposition"] = (
                f"attachment; filename*=UTF-8''{quote(download_name, safe='')}"
            )
        return self._presign("GET", bucket, key, expires_s, answer)

    def _presign(self, method: str, bucket: Bucket, key: str, expires_s: int, answer: dict[str, Any]) -> str:
        check_key(key)
        expires = timedelta(seconds=check_expires(expires_s))
        client = open_signer(self._config)
        url: str = client.get_presigned_url(
            method, self._name(bucket), key, expires=expires, response_headers=answer
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

    def check(self) -> None:
        try:
            for role in self._names:
                self._require_bucket(role)
        except StorageUnavailable:
            raise
        except ScenefleetError as error:
            raise StorageUnavailable(str(error)) from error

    def describe(self) -> str:
        return f"S3 server {self._server}"

    # --- the server

    def _require_bucket(self, bucket: Bucket) -> None:
        with self._reported(bucket, None):
            if not self._connect().bucket_exists(self._name(bucket)):
                raise StorageUnavailable(no_bucket(self._server, self._name(bucket)))

    def _name(self, bucket: Bucket) -> str:
        try:
            return self._names[bucket]
        except KeyError:
            raise InvalidRequest(
                f"there is no bucket role {bucket!r}: use one of {', '.join(self._names)}"
            ) from None

    def _connect(self) -> Minio:
        """This process's client: a child after a fork must not share its parent's sockets."""
        opened = self._client
        if opened is None or opened[0] != os.getpid():
            # Two threads may both come here; then one client is used once and dropped.
            opened = (os.getpid(), open_client(self._config))
            self._client = opened
        return opened[1]

    @contextmanager
    def _reported(self, bucket: Bucket, key: str | None) -> Iterator[None]:
        """Turn the errors of ``minio`` and ``urllib3`` into ours."""
        try:
            yield
        except (MinioException, HTTPError, ParseError, UnicodeDecodeError) as error:
            if isinstance(error, S3Error) and error.code == "InvalidRange":
                raise _PastTheEnd from error
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


class _PastTheEnd(Exception):
    """The range begins where the object has ended."""


_GONE = frozenset({"NoSuchKey", "NoSuchVersion"})


def _part_bytes(size_bytes: int) -> int:
    """The smallest whole number of MiB that needs no more parts than S3 allows."""
    return max(PART_BYTES, -(-size_bytes // (MAX_PARTS * MiB)) * MiB)


def _is_key(name: str) -> bool:
    try:
        check_key(name)
    except InvalidKey:
        return False
    return True
