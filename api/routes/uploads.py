"""Uploads: tus 1.0, which any tus client resumes, and a presigned URL where the storage has them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Request, Response
from fastapi.routing import APIRoute

from api import problems, tus
from api.asking import Asking, asking
from api.bodies import json_body
from api.callers import Caller, caller
from api.upload_locks import locked
from api.uploads import Body, Upload, Uploads
from shared import routing
from shared.contracts import UploadSlot, UploadVideo
from shared.errors import Conflict, LimitExceeded, NotFound, ScenefleetError
from shared.settings import Settings


class TusRoute(APIRoute):
    """Adds the headers of tus to every answer, problems too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_tus(request: Request) -> Response:
            try:
                response = await handle(request)
            except ScenefleetError as error:
                response = problems.problem(error)
            response.headers["Tus-Resumable"] = response.headers["Tus-Version"] = tus.VERSION
            return response

        return handle_tus


router = APIRouter(tags=["uploads"])
_tus = APIRouter(prefix="/uploads", route_class=TusRoute)
Who = Annotated[Caller, Depends(caller)]
Ask = Annotated[Asking, Depends(asking)]
UploadId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="The last part of `Location`")]


def _header(name: str, description: str, pattern: str) -> Any:
    """A header that is described by ``pattern`` but checked by ``api.tus``, which says what tus wants said."""
    return Header(alias=name, description=description, json_schema_extra={"pattern": pattern})


Version = Annotated[str, _header("Tus-Resumable", "`1.0.0`", r"^1\.0\.0$")]
Length = Annotated[str, _header("Upload-Length", "Size of the file, bytes", "^[1-9][0-9]{0,8}$")]
Offset = Annotated[str, _header("Upload-Offset", "Where the body belongs, bytes", "^(0|[1-9][0-9]{0,8})$")]
Metadata = Annotated[
    str, _header("Upload-Metadata", "`filename`, `video_id` and `priority`, values in Base64", "^[ -~]*$")
]
Checksum = Annotated[
    str,
    _header(
        "Upload-Checksum",
        "`sha1` or `sha256` and the digest in Base64",
        "^(sha1 [A-Za-z0-9+/]{26}[AEIMQUYcgkosw048]=)?$",
    ),
]


def uploads(request: Request) -> Uploads:
    """The dependency of these routes."""
    found: Uploads = request.app.state.uploads
    return found


Service = Annotated[Uploads, Depends(uploads)]


@_tus.options("", status_code=204, response_class=Response)
async def tus_options(request: Request) -> Response:
    """What this server offers of tus."""
    return Response(
        status_code=204,
        headers={
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Max-Size": str(_settings(request).max_video_bytes),
            "Tus-Checksum-Algorithm": ",".join(tus.CHECKSUMS),
        },
    )


@_tus.post(
    "",
    status_code=201,
    response_class=Response,
    responses=problems.responses(408, 409, 412, 413, 415, 423, 460),
)
async def begin_upload(
    request: Request,
    who: Who,
    service: Service,
    version: Version,
    length: Length,
    metadata: Metadata = "",
    checksum: Checksum = "",
) -> Response:
    """Begin an upload at `Location`. A body of type `application/offset+octet-stream` may have its first bytes."""
    tus.require_version(version)
    size_bytes = tus.read_length(length, _settings(request).max_video_bytes)
    found = tus.read_metadata(metadata, who.user_id)
    tus.read_checksum(checksum)
    has_body = _body_bytes(request) != 0
    if has_body:
        tus.require_content_type(request.headers.get("content-type"))
    upload = await service.begin(who.user_id, size_bytes, found, metadata)
    offset = 0
    if has_body:
        offset = await _receive(request, service, upload, 0, checksum)
    headers = _progress(upload, offset) | {
        "Location": f"{request.url.path}/{upload.upload_id}",
        "Scenefleet-Video-Id": upload.video_id,
    }
    return Response(status_code=201, headers=headers)


@_tus.head("/{upload_id}", response_class=Response, responses=problems.responses(404, 410, 412, 423))
async def upload_offset(
    upload_id: UploadId, request: Request, who: Who, service: Service, version: Version
) -> Response:
    """How much of an upload has arrived. One that is complete is sent to the fleet, if that has failed before."""
    tus.require_version(version)
    await service.find(who.user_id, upload_id)  # no lock for what is not there
    async with locked(request.app.state.redis, upload_id):
        upload = await service.find(who.user_id, upload_id)
        offset = await service.offset_bytes(upload)
        if offset == upload.size_bytes:
            await service.finish(upload)
    headers = _progress(upload, offset) | {
        "Upload-Length": str(upload.size_bytes),
        "Scenefleet-Video-Id": upload.video_id,
    }
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    return Response(headers=headers)


@_tus.patch(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    responses=problems.responses(404, 408, 409, 410, 412, 413, 415, 423, 460),
)
async def continue_upload(
    upload_id: UploadId,
    request: Request,
    who: Who,
    service: Service,
    version: Version,
    offset: Offset,
    checksum: Checksum = "",
) -> Response:
    """Append the body, of type `application/offset+octet-stream`.

    The answer to the last byte comes when the fleet has accepted the video.
    """
    tus.require_version(version)
    at = tus.read_offset(offset)
    tus.read_checksum(checksum)
    upload = await service.find(who.user_id, upload_id)
    tus.require_content_type(request.headers.get("content-type"))
    done = await _receive(request, service, upload, at, checksum)
    return Response(status_code=204, headers=_progress(upload, done))


@_tus.delete(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    responses=problems.responses(404, 409, 410, 412, 423),
)
async def end_upload(
    upload_id: UploadId, request: Request, who: Who, service: Service, version: Version
) -> Response:
    """End an upload and remove what has arrived."""
    tus.require_version(version)
    await service.find(who.user_id, upload_id)
    async with locked(request.app.state.redis, upload_id):
        await service.end(await service.find(who.user_id, upload_id))
    return Response(status_code=204)


Slot = json_body(UploadVideo, "user_id", name="Slot")


@router.post(
    "/uploads/presigned", responses=problems.responses(404, 408, 409, 413, 415), openapi_extra=Slot.extra
)
async def presign_upload(
    request: Request, who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(Slot.read)]
) -> UploadSlot:
    """Return a URL to PUT a video to; then create the video. Only where the storage is S3."""
    if _settings(request).storage_backend == "local":
        raise NotFound("this storage has no upload URLs: upload with tus to /api/v1/uploads")
    return await ask.ask(routing.VIDEO_UPLOAD, UploadVideo, body | {"user_id": who.user_id}, UploadSlot)


@router.api_route("/uploads/presigned", methods=["HEAD", "PATCH", "DELETE"], include_in_schema=False)
async def no_upload() -> None:
    """That address is no upload's."""
    raise HTTPException(405)


router.include_router(_tus)


async def _receive(request: Request, service: Uploads, upload: Upload, offset: int, checksum: str) -> int:
    """Store the body at ``offset`` and finish the upload if that was all of it."""
    expected = tus.read_checksum(checksum)
    announced = _body_bytes(request)
    if announced is not None and offset + announced > upload.size_bytes:
        raise LimitExceeded(
            f"Upload-Offset={offset} and {announced} bytes go beyond Upload-Length={upload.size_bytes}: send less"
        )
    state = request.app.state
    with service.receiving.hold(upload.user_id):
        async with locked(state.redis, upload.upload_id) as lock:
            # Another request may have finished it since it was found.
            upload = await service.find(upload.user_id, upload.upload_id)
            done = await service.offset_bytes(upload)
            if done != offset:
                raise Conflict(f"Upload-Offset={offset}, but {done} bytes have arrived: continue there")
            if done < upload.size_bytes:
                body = Body(request, lock.ending, state.stopping)
                done = await service.receive(upload, offset, body, fence=lock.fence, checksum=expected)
            if done == upload.size_bytes:
                await service.finish(upload)
    return done


def _progress(upload: Upload, offset: int) -> dict[str, str]:
    headers = {"Upload-Offset": str(offset)}
    if offset < upload.size_bytes:
        headers["Upload-Expires"] = tus.http_date(upload.expires_at)
    return headers


def _body_bytes(request: Request) -> int | None:
    """The announced size of the body; None: it comes in chunks."""
    announced = request.headers.get("content-length")
    if announced is not None:
        return int(announced) if announced.isdecimal() else None
    return None if "transfer-encoding" in request.headers else 0


def _settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found
