"""Objects on an S3 server (MinIO in docker-compose), over pooled connections with bounded waits.

A request is tried at most three times, each connection and each silence is limited, and what remains is one of our
errors. Credentials and signatures never appear in them. A whole answer is checked against its announced length.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from ..errors import InvalidRequest, ObjectMissing, StorageUnavailable
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

    def _presign(
        self, method: str, bucket: Bucket, key: str, expires_s: int, download_name: str | None = None
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


_GONE = frozenset({"NoSuchKey", "NoSuchVersion"})


def _part_bytes(size_bytes: int) -> int:
    """The smallest whole number of MiB that needs no more parts than S3 allows."""
    return max(PART_BYTES, -(-size_bytes // (MAX_PARTS * MiB)) * MiB)
