"""Uploads of videos: what was begun, what has arrived, and the request that follows when all of it is there.

The state of an upload is an object in the tmp bucket, ``incoming/{user}/{upload}/state.json``, beside what the storage
keeps of its bytes; so any API process continues what another one began. When the fleet has accepted the video, the
state moves to ``received/{user}/{upload}.json`` and everything else of the upload is removed. Each step may be repeated:
whoever looks at an upload that is complete but not accepted finishes it (``finish``), the sweep at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool as in_thread
from starlette.requests import ClientDisconnect

from api.asking import Asking
from api.files import content_type
from api.limits import Slots
from api.problems import BadRequest, BodyTooLarge, SlowClient, TooManyRequests, UploadGone, UploadLocked
from api.tus import Checksum, Metadata
from api.upload_locks import locked
from shared import routing
from shared.contracts import ProcessVideo, Receipt
from shared.errors import (
    Conflict,
    InvalidKey,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    ObjectMissing,
    QuotaExceeded,
    ScenefleetError,
    StorageUnavailable,
)
from shared.settings import Settings
from shared.storage import Incoming, Storage

log = logging.getLogger(__name__)

MAX_STATE_BYTES = 64 * 1024
#: Unfinished uploads of a user: each may hold MAX_VIDEO_BYTES.
MAX_OPEN = 200
#: Requests with bytes that one process takes at once, per user and in all: each may hold two parts in memory.
MAX_RECEIVING, MAX_RECEIVING_OF_USER = 64, 16
#: Bytes that are stored at once, and the largest body with a checksum: one part of S3.
BATCH_BYTES, MAX_CHECKED_BYTES = 2**20, 8 * 2**20
#: Longest silence of a client that sends, seconds.
SILENCE_S = 30.0
SWEEP_S = 300.0
#: Of pictures to search for or to embed, by type.
PICTURE_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
_SWEPT = "scenefleet:uploads-swept"
_SWEEP_MARGIN_S = 3600.0


class Upload(BaseModel):
    """One upload, as stored."""

    model_config = ConfigDict(frozen=True)

    upload_id: str
    user_id: str
    video_id: str
    storage_key: str
    priority: int
    #: Upload-Metadata as it was sent.
    metadata: str
    size_bytes: int
    expires_at: datetime
    #: ``Incoming``, as JSON.
    incoming: dict[str, str | int]
    accepted: bool = False
    #: Why the fleet has refused the video; None: it has not.
    refused: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.accepted or self.refused is not None

    @property
    def target(self) -> Incoming:
        return Incoming(**self.incoming)  # type: ignore[arg-type]


class Uploads:
    """The uploads of all users. One per API process, without anything that another process would miss."""

    def __init__(self, settings: Settings, storage: Storage, redis: Redis, asking: Asking) -> None:
        self._settings, self._storage, self._redis, self._asking = settings, storage, redis, asking
        #: Requests with bytes.
        self.receiving = Slots("uploads", MAX_RECEIVING_OF_USER, MAX_RECEIVING)

    async def begin(self, user_id: str, size_bytes: int, metadata: Metadata, sent: str) -> Upload:
        """Begin an upload.

        Raises:
            Conflict: the video has a file already.
            TooManyRequests: the user has too many unfinished uploads.
        """
        upload_id = secrets.token_hex(16)
        folder = _folder(user_id, upload_id)

        def begin() -> Upload:
            video = metadata.storage_key.rpartition("/")[0] + "/"
            if next(self._storage.list("uploads", video), None) is not None:
                raise Conflict(f"video {metadata.video_id} has a file already: choose another video_id")
            states = self._storage.list("tmp", f"incoming/{user_id}/")
            if sum(info.key.endswith(_STATE) for info in states) >= MAX_OPEN:
                raise TooManyRequests(
                    f"{MAX_OPEN} uploads are unfinished: finish or end some of them first", retry_after_s=60
                )
            kind = content_type(metadata.storage_key)
            target = self._storage.begin("uploads", metadata.storage_key, size_bytes, kind, folder=folder)
            upload = Upload(
                upload_id=upload_id,
                user_id=user_id,
                video_id=metadata.video_id,
                storage_key=metadata.storage_key,
                priority=metadata.priority,
                metadata=sent,
                size_bytes=size_bytes,
                expires_at=datetime.now(UTC) + timedelta(seconds=self._settings.upload_ttl_s),
                incoming=asdict(target),
            )
            self._save(folder + _STATE, upload)
            return upload

        return await in_thread(begin)

    async def find(self, user_id: str, upload_id: str) -> Upload:
        """One of the user's uploads.

        Raises:
            NotFound: there is none, or it has expired.
            UploadGone: the fleet has refused its video.
        """
        upload = await in_thread(self._find, user_id, upload_id)
        if upload is None or (datetime.now(UTC) > upload.expires_at and not upload.is_finished):
            raise NotFound(f"there is no upload {upload_id}, or it has expired: begin again")
        if upload.refused is not None:
            raise UploadGone(upload.refused)
        return upload

    def _find(self, user_id: str, upload_id: str) -> Upload | None:
        for key in (_folder(user_id, upload_id) + _STATE, _received(user_id, upload_id)):
            with contextlib.suppress(ObjectMissing):
                return self._load(key)
        return None

    async def offset_bytes(self, upload: Upload) -> int:
        """How much of an upload has arrived.

        Raises:
            NotFound: what had arrived was removed.
        """
        if upload.is_finished:
            return upload.size_bytes
        return await in_thread(self._offset_bytes, upload)

    def _offset_bytes(self, upload: Upload) -> int:
        try:
            return self._storage.received_bytes(upload.target)
        except ObjectMissing:
            # An earlier request may have died after the object had appeared.
            with contextlib.suppress(ObjectMissing, Conflict):
                self._storage.complete(upload.target)
                return upload.size_bytes
        raise NotFound(f"upload {upload.upload_id} has been removed: begin again")

    async def receive(
        self, upload: Upload, offset_bytes: int, body: Body, *, fence: int, checksum: Checksum | None = None
    ) -> int:
        """Store a body at ``offset_bytes``, also what came of it before the connection broke; return the new offset.

        With a checksum all of the body counts, or nothing.

        Raises:
            Conflict: the upload is at another offset.
            LimitExceeded: the file would be longer than announced.
            ChecksumMismatch: the body is another one.
            BodyTooLarge: a body with a checksum is too large to be checked.
        """
        room_bytes = upload.size_bytes - offset_bytes
        with contextlib.ExitStack() as opened:
            appender = await in_thread(opened.enter_context, self._storage.append(upload.target, fence=fence))
            if appender.offset_bytes != offset_bytes:
                raise Conflict(
                    f"Upload-Offset={offset_bytes}, but {appender.offset_bytes} bytes have arrived: continue there"
                )
            waiting = bytearray()

            def store(*, flush: bool) -> None:
                appender.write(bytes(waiting))
                waiting.clear()
                if flush:
                    appender.flush()

            async for chunk in body:
                room_bytes -= len(chunk)
                if room_bytes < 0:
                    raise LimitExceeded(
                        f"the body goes beyond Upload-Length={upload.size_bytes}: send as much as was announced"
                    )
                waiting += chunk
                if checksum is not None and len(waiting) > MAX_CHECKED_BYTES:
                    raise BodyTooLarge(
                        f"a body with Upload-Checksum may have {MAX_CHECKED_BYTES} bytes: send smaller ones"
                    )
                if checksum is None and len(waiting) >= BATCH_BYTES:
                    await in_thread(store, flush=False)
            if checksum is not None:
                if body.broken is not None:
                    raise body.broken
                checksum.check(bytes(waiting))
            await in_thread(store, flush=True)
        if body.broken is not None:
            raise body.broken
        return appender.offset_bytes

    async def finish(self, upload: Upload) -> Upload:
        """Let the object of a complete upload appear, and send its video to the fleet. Repeating it changes nothing.

        Raises:
            InvalidRequest: the fleet has refused the video, for good.
            Outage: the fleet does not answer: the bytes are kept, and this may be tried again at any time.
        """
        if upload.is_finished:
            return upload
        try:
            await in_thread(self._storage.complete, upload.target)
        except Conflict as error:
            await in_thread(self._storage.abort, upload.target)
            return await self._refuse(upload, error)
        request = {
            "user_id": upload.user_id,
            "video_id": upload.video_id,
            "storage_key": upload.storage_key,
            "priority": upload.priority,
        }
        try:
            await self._asking.ask(routing.VIDEO_PROCESS, ProcessVideo, request, Receipt)
        except (Conflict, InvalidRequest, InvalidKey) as error:
            # The id belongs to another video, or to a deleted one: nothing else has this key.
            await in_thread(self._storage.delete, "uploads", upload.storage_key)
            return await self._refuse(upload, error)
        return await in_thread(self._settle, upload.model_copy(update={"accepted": True}))

    async def _refuse(self, upload: Upload, error: ScenefleetError) -> Upload:
        reason = f"the video was not accepted ({error}): upload it as another video"
        await in_thread(self._settle, upload.model_copy(update={"refused": reason}))
        raise InvalidRequest(reason) from error

    def _settle(self, upload: Upload) -> Upload:
        self._save(_received(upload.user_id, upload.upload_id), upload)
        self._storage.delete_prefix("tmp", _folder(upload.user_id, upload.upload_id))
        return upload

    async def end(self, upload: Upload) -> None:
        """Remove an upload that is not complete.

        Raises:
            Conflict: it is complete.
        """
        if upload.is_finished:
            raise Conflict(f"the upload is complete: delete video {upload.video_id} instead")
        await in_thread(self._remove, upload)

    def _remove(self, upload: Upload) -> None:
        self._storage.abort(upload.target)
        self._storage.delete_prefix("tmp", _folder(upload.user_id, upload.upload_id))

    async def keep_picture(self, user_id: str, data: bytes, extension: str, content_type: str) -> str:
        """Store a picture to search for; return its key. The sweep removes it after QUERY_PICTURE_TTL_S."""
        name = f"{user_id}/queries/{uuid.uuid4().hex}.{extension}"

        def store() -> None:
            # The sweep finds it by this mark: to list the pictures of all users would be to list all videos.
            self._storage.put_bytes("tmp", f"queries/{name}", b"", "application/octet-stream")
            self._storage.put_bytes("uploads", f"uploads/{name}", data, content_type)

        await in_thread(store)
        return f"uploads/{name}"

    async def forget_query(self, key: str) -> None:
        """Remove what was stored for one request (``keep_picture``, ``api.sounds``) before the sweep does."""

        def remove() -> None:
            self._storage.delete("uploads", key)
            # Last: by this mark the sweep finds what a failure has left.
            self._storage.delete("tmp", "queries" + key.removeprefix("uploads"))

        try:
            await in_thread(remove)
        except StorageUnavailable as error:
            log.warning("the file of a request is left to the sweep: %s", type(error).__name__)

    async def sweep_for_ever(self) -> None:
        """Finish what was left complete and remove what has expired, every few minutes, in one process of all."""
        while True:
            try:
                if await self._redis.set(_SWEPT, "1", nx=True, px=int(900 * SWEEP_S)):
                    await self.sweep()
            except (ScenefleetError, RedisError, OSError) as error:
                log.warning("uploads not swept: %s", type(error).__name__)
            except Exception:
                log.exception("uploads not swept")
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Finish uploads that are complete, remove expired ones, and pictures that were to be searched for."""
        states = await in_thread(lambda: [info.key for info in self._storage.list("tmp", "incoming/")])
        for key in states:
            if key.endswith(_STATE):
                with contextlib.suppress(
                    UploadLocked, ObjectMissing, NotFound, InvalidRequest, QuotaExceeded
                ):
                    await self._sweep_one(key)
        await in_thread(self._sweep_old)

    async def _sweep_one(self, key: str) -> None:
        upload_id = key.split("/")[2]
        async with locked(self._redis, upload_id, wait_s=0):
            upload = await in_thread(self._load, key)
            expired = datetime.now(UTC) > upload.expires_at
            try:
                complete = await self.offset_bytes(upload) == upload.size_bytes
            except NotFound:
                complete, expired = False, True
            if complete:
                await self.finish(upload)
            elif expired:
                await in_thread(self._remove, upload)

    def _sweep_old(self) -> None:
        now = datetime.now(UTC)
        upload_ttl_s = self._settings.upload_ttl_s
        for info in self._storage.list("tmp", "received/"):
            if now - info.modified_at > timedelta(seconds=upload_ttl_s):
                self._storage.delete("tmp", info.key)
        for info in self._storage.list("tmp", "queries/"):
            if now - info.modified_at > timedelta(seconds=self._settings.query_picture_ttl_s):
                self._storage.delete("uploads", "uploads" + info.key.removeprefix("queries"))
                self._storage.delete("tmp", info.key)
        self._storage.sweep_incoming("uploads", upload_ttl_s + _SWEEP_MARGIN_S)

    def _load(self, key: str) -> Upload:
        try:
            return Upload.model_validate_json(self._storage.get_bytes("tmp", key, max_bytes=MAX_STATE_BYTES))
        except ValidationError as error:
            raise ObjectMissing(f"object tmp:{key} is no state of an upload: remove it") from error

    def _save(self, key: str, upload: Upload) -> None:
        self._storage.put_bytes("tmp", key, upload.model_dump_json().encode(), "application/json")


class Body:
    """The bytes of a request as they come. It ends without an exception, whatever happens; ``broken`` says why."""

    def __init__(self, request: Request, *endings: asyncio.Event) -> None:
        """``endings``: events at which the request shall end early."""
        self._request, self._endings = request, endings
        self.broken: ScenefleetError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._request.stream()
        endings = [asyncio.ensure_future(event.wait()) for event in self._endings]
        try:
            while True:
                coming = asyncio.ensure_future(anext(chunks, None))
                done, _ = await asyncio.wait(
                    {coming, *endings}, timeout=SILENCE_S, return_when=asyncio.FIRST_COMPLETED
                )
                if coming not in done:
                    coming.cancel()
                    await asyncio.wait({coming})
                    self.broken = (
                        UploadLocked(
                            "the server stops, or another request continues this upload: ask for its offset"
                        )
                        if done
                        else SlowClient(f"nothing came for {SILENCE_S:g} s: ask for the offset and continue")
                    )
                    return
                try:
                    chunk = coming.result()
                except ClientDisconnect:
                    self.broken = BadRequest("the connection broke: ask for the offset and continue")
                    return
                if chunk is None:
                    return
                if chunk:
                    yield chunk
        finally:
            for ending in endings:
                ending.cancel()


_STATE = "state.json"


def _folder(user_id: str, upload_id: str) -> str:
    return f"incoming/{user_id}/{upload_id}/"


def _received(user_id: str, upload_id: str) -> str:
    return f"received/{user_id}/{upload_id}.json"
