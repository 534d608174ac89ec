"""The bytes of videos and pictures: the file that plays, its sprites, keyframes, photos, and pictures to search for."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool as in_thread

from api import problems
from api.asking import Asking
from api.files import OCTETS, FileResponse, content_type, picture_type
from api.limits import read_body
from api.parameters import Ask, VideoId, Who
from api.problems import UnsupportedMedia
from api.uploads import PICTURE_EXTENSIONS, Uploads
from shared import routing
from shared.contracts import MAX_PICTURE_BYTES, VideoMedia, VideoRef
from shared.errors import InvalidKey, NotFound, ObjectMissing
from shared.storage import Bucket, Storage, require_prefix

router = APIRouter(tags=["media"])

#: Lifetime of the URL of a redirect: as long as one may watch without a new request, seconds.
LINK_S = 6 * 3600
#: A key is never used for another picture. Not longer than a day: an erased person must not stay in caches.
_CACHE = "private, max-age=86400, immutable"
_BYTES = {"schema": {"type": "string", "format": "binary"}}
#: What is no video or sound by its name is saved only.
_FILE = {"content": dict.fromkeys(("video/*", "audio/*", OCTETS), _BYTES)}
_RANGES = {"content": {**_FILE["content"], "multipart/byteranges": _BYTES}}
_PICTURE = dict.fromkeys(PICTURE_EXTENSIONS, _BYTES)
_SPRITE = re.compile(r"^sprite-(\d+)\.jpg#", re.MULTILINE | re.ASCII)


class Picture(BaseModel):
    """A stored picture."""

    storage_key: str


_PLAY = {
    **problems.responses(404, 416),
    200: _FILE,
    206: {"description": "The requested ranges", **_RANGES},
    304: {"description": "The file is the one of `If-None-Match`"},
    307: {"description": "The file is at the storage: follow `Location`"},
}
Download = Annotated[bool, Query(description="The uploaded file, to be saved")]


@router.get("/videos/{video_id}/media", response_class=Response, responses=_PLAY)
async def play_video(
    video_id: VideoId, request: Request, who: Who, ask: Ask, download: Download = False
) -> Response:
    """Return the file that a browser plays: the rendition if there is one, else the uploaded file. Knows ranges."""
    bucket, key = await _file_of(video_id, who.user_id, ask, download)
    name = key.rpartition("/")[2]
    kind = content_type(name)
    storage: Storage = request.app.state.storage
    source = await in_thread(storage.open_file, bucket, key)
    saved = name if download or kind == OCTETS else None
    if source is not None:
        return FileResponse(source, request.headers, request.method, kind, download=saved)
    if request.method == "HEAD":  # a URL is signed for one method
        size_bytes = (await in_thread(storage.stat, bucket, key)).size_bytes
        headers = {"Content-Length": str(size_bytes), "Accept-Ranges": "bytes"}
        return Response(media_type=kind, headers=headers)
    url = await in_thread(
        lambda: storage.presign_get(bucket, key, LINK_S, download_name=saved, content_type=kind)
    )
    return RedirectResponse(url, 307)


@router.head("/videos/{video_id}/media", response_class=Response, responses=_PLAY)
async def describe_media(
    video_id: VideoId, request: Request, who: Who, ask: Ask, download: Download = False
) -> Response:
    """Return the headers of the file that a browser plays."""
    return await play_video(video_id, request, who, ask, download)


async def _file_of(video_id: str, user_id: str, ask: Asking, original: bool) -> tuple[Bucket, str]:
    """Where the file is that plays, or the original one."""
    found = await _media(video_id, user_id, ask)
    if original or found.media.bucket is None or found.media.key is None:
        return "uploads", _require_own(found.original_key, user_id, video_id)
    return found.media.bucket, _require_own(found.media.key, user_id, video_id)


async def _media(video_id: str, user_id: str, ask: Asking) -> VideoMedia:
    kwargs = {"user_id": user_id, "video_id": video_id}
    return await ask.ask(routing.VIDEO_MEDIA, VideoRef, kwargs, VideoMedia)


@router.get(
    "/videos/{video_id}/sprites.vtt",
    response_class=Response,
    responses={**problems.responses(404), 200: {"content": {"text/vtt": {"schema": {"type": "string"}}}}},
)
async def get_sprites(video_id: VideoId, request: Request, who: Who, ask: Ask) -> Response:
    """Return the WebVTT file that says which part of which sprite sheet shows which moment."""
    data = await _sprite_file(video_id, request, who.user_id, ask, "sprites.vtt")
    text = _SPRITE.sub(r"sprites/\1.jpg#", data.decode())
    return Response(text, media_type="text/vtt; charset=utf-8")


@router.get(
    "/videos/{video_id}/sprites/{number}.jpg",
    response_class=Response,
    responses={
        **problems.responses(404),
        200: {"content": {"image/jpeg": _BYTES}},
    },
)
async def get_sprite_sheet(
    video_id: VideoId, number: Annotated[int, Path(ge=0, le=9999)], request: Request, who: Who, ask: Ask
) -> Response:
    """Return a sprite sheet."""
    data = await _sprite_file(video_id, request, who.user_id, ask, f"sprite-{number}.jpg")
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})


async def _sprite_file(video_id: str, request: Request, user_id: str, ask: Asking, name: str) -> bytes:
    found = await _media(video_id, user_id, ask)
    if found.sprites_prefix is None:
        raise NotFound(f"video {video_id} has no sprites (yet): wait for its split")
    key = _require_own(found.sprites_prefix + name, user_id, video_id)
    storage: Storage = request.app.state.storage
    return await in_thread(storage.get_bytes, "sidecars", key)


@router.get(
    "/objects/{key:path}",
    response_class=Response,
    responses={**problems.responses(404), 200: {"content": _PICTURE}},
)
async def get_object(key: str, request: Request, who: Who) -> Response:
    """Return a picture by its storage key: a keyframe, a photo of a person, or a picture to search for."""
    places: tuple[tuple[Bucket, str], ...] = (
        ("sidecars", f"keyframes/{who.user_id}/"),
        ("uploads", f"faces/{who.user_id}/"),
        ("uploads", f"uploads/{who.user_id}/queries/"),
    )
    bucket = next((bucket for bucket, prefix in places if key.startswith(prefix)), None)
    data, kind = b"", None
    if bucket is not None:
        storage: Storage = request.app.state.storage
        try:
            head = await in_thread(lambda: storage.get_bytes(bucket, key, length=16))
            kind = picture_type(head)
            if kind is not None:
                data = await in_thread(lambda: storage.get_bytes(bucket, key, max_bytes=MAX_PICTURE_BYTES))
        except (ObjectMissing, InvalidKey):
            kind = None
    if kind is None:
        raise NotFound(f"there is no picture {key[:200]!a} of yours: list the video's scenes")
    return Response(data, media_type=kind, headers={"Cache-Control": _CACHE})


@router.put(
    "/pictures",
    status_code=201,
    responses=problems.responses(408, 413, 415),
    openapi_extra={"requestBody": {"required": True, "content": _PICTURE}},
)
async def store_picture(request: Request, who: Who) -> Picture:
    """Store a JPEG, PNG or WebP to search for (`image_key`). It is removed after QUERY_PICTURE_TTL_S."""
    data = await read_body(request, MAX_PICTURE_BYTES)
    kind = picture_type(data)
    if kind is None:
        raise UnsupportedMedia("the body is no JPEG, PNG or WebP: send one of these")
    uploads: Uploads = request.app.state.uploads
    return Picture(storage_key=await uploads.keep_picture(who.user_id, data, PICTURE_EXTENSIONS[kind], kind))


def _require_own(key: str, user_id: str, video_id: str) -> str:
    """Refuse what is not of this video, whoever says so."""
    try:
        return require_prefix(key, f"{key.partition('/')[0]}/{user_id}/{video_id}/")
    except InvalidKey:
        raise NotFound(f"video {video_id} has no such file") from None
