"""Files and pictures over HTTP, on a folder and on an S3 server; the fleet is played by the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.files import CHUNK_BYTES
from shared import routing
from shared.settings import Settings
from shared.storage import Storage
from tests.support.replicas import PlayedFleet, replica
from tests.support.s3_servers import variables_of, with_own_buckets
from tests.support.services import RedisServer

DATA = os.urandom(3 * CHUNK_BYTES + 77)
JPEG = b"\xff\xd8\xff" + b"picture"
HTML = b"<html><script>alert(1)</script>"


class Site:
    """An API with one user's video, and the answers of its fleet."""

    def __init__(self, url: str, storage: Storage, fleet: PlayedFleet, backend: str) -> None:
        self.storage, self.backend = storage, backend
        self.client = httpx.Client(base_url=f"{url}/api/v1", headers={"X-User": "u1"}, timeout=30)
        self.media: dict[str, Any] = {"playable": "original", "bucket": None, "key": None}
        self.original = "uploads/u1/v1/film.mp4"
        fleet.answer = self.answer

    def answer(self, task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert task == routing.VIDEO_MEDIA
        empty = {"reason": None, "width_px": None, "height_px": None}
        return {
            "video_id": kwargs["video_id"],
            "duration_s": 1.0,
            "media": {**empty, **self.media},
            "original_key": self.original,
            "sprites_prefix": "keyframes/u1/v1/1.1/",
            "sprite_sheets": 1,
        }

    def get(self, path: str = "/videos/v1/media", **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers, follow_redirects=True)


@pytest.fixture(params=["local", "moto"])
def site(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Site]:
    values: dict[str, Any] = {"redis_url": redis_server.url, "storage_root": tmp_path / "storage"}
    if request.param == "moto":
        values |= variables_of(with_own_buckets(request.getfixturevalue("moto")))
    fleet = PlayedFleet()
    with replica(monkeypatch, Settings(**values), fleet) as found:
        storage: Storage = found.app.state.storage
        storage.ensure_buckets()
        storage.put_bytes("uploads", "uploads/u1/v1/film.mp4", DATA, "text/html")
        yield Site(found.url, storage, fleet, request.param)


def test_the_file_that_plays(site: Site) -> None:
    whole = site.get()
    assert whole.content == DATA and whole.headers["content-type"] == "video/mp4"
    assert site.get(Range="bytes=-7").content == DATA[-7:]
    assert site.get("/videos/v1/media?download=1").headers["content-disposition"].startswith("attachment")
    head = site.client.head("/videos/v1/media")
    assert head.status_code == 200 and head.headers["content-length"] == str(len(DATA))
    site.storage.put_bytes("sidecars", "renditions/u1/v1/1.1/film.mp4", b"rendition", "video/mp4")
    site.media = {"playable": "rendition", "bucket": "sidecars", "key": "renditions/u1/v1/1.1/film.mp4"}
    assert site.get().content == b"rendition"
    assert site.get("/videos/v1/media?download=1").content == DATA


def test_a_file_of_another_kind_is_only_saved(site: Site) -> None:
    for name in ("page.html", "picture.svg", 'a"; x=.htm', "плюс.xhtml"):
        site.original = f"uploads/u1/v1/{name}"
        site.storage.put_bytes("uploads", site.original, HTML, "text/html")
        answer = site.get()
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")
        if site.backend == "local":
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_outside_the_video_is_sent_whoever_names_it(site: Site) -> None:
    for key in (
        "uploads/u2/v1/film.mp4",
        "uploads/u1/v2/film.mp4",
        "uploads/u1/v1/../v2/x",
        "/etc/passwd",
        "x",
    ):
        site.storage.put_bytes("uploads", "uploads/u2/v1/film.mp4", DATA, "video/mp4")
        site.original = key
        assert site.get().status_code == 404


@pytest.mark.parametrize("site", ["local"], indirect=True)
def test_ranges_and_conditions(site: Site) -> None:
    whole = site.get()
    etag, modified = whole.headers["etag"], whole.headers["last-modified"]
    for asked, start, end in (
        ("0-0", 0, 1),
        (f"{CHUNK_BYTES}-", CHUNK_BYTES, len(DATA)),
        ("5-999999999", 5, len(DATA)),
    ):
        part = site.get(Range=f"bytes={asked}")
        assert part.status_code == 206 and part.content == DATA[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    several = site.get(Range="bytes=0-1,-2")
    assert several.status_code == 206
    boundary = several.headers["content-type"].partition("boundary=")[2].encode()
    parts = several.content.split(b"--" + boundary)
    assert len(parts) == 4 and parts[1].endswith(b"\r\n\r\n" + DATA[:2] + b"\r\n")
    assert int(several.headers["content-length"]) == len(several.content)
    beyond = site.get(Range=f"bytes={len(DATA)}-")
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{len(DATA)}"
    assert beyond.headers["content-type"] == "application/problem+json"
    for unknown in ("lines=0-1", "bytes=0-9,5-", "nonsense"):
        assert site.get(Range=unknown).status_code == 200
    assert site.get(Range="bytes=0-1", **{"If-Range": etag}).status_code == 206
    assert site.get(Range="bytes=0-1", **{"If-Range": modified}).status_code == 206
    assert site.get(Range="bytes=0-1", **{"If-Range": '"other"'}).content == DATA
    same = site.get(**{"If-None-Match": f'"x", W/{etag}'})
    assert same.status_code == 304 and same.content == b"" and same.headers["etag"] == etag
    assert site.client.head("/videos/v1/media", headers={"Range": "bytes=0-1"}).status_code == 200


@pytest.mark.parametrize("site", ["local"], indirect=True)
def test_clients_that_leave_close_their_files(site: Site) -> None:

    def link(path: Path) -> str:
        try:
            return str(path.readlink())
        except OSError:
            return ""

    def open_files() -> int:
        return sum("film.mp4" in link(one) for one in Path("/proc/self/fd").iterdir())

    for _ in range(5):
        with site.client.stream("GET", "/videos/v1/media") as answer:
            next(answer.iter_bytes(10))
    for _ in range(100):
        if not open_files():
            break
        site.get("/videos/v1/media", Range="bytes=0-0")
    assert open_files() == 0


@pytest.mark.parametrize("site", ["local"], indirect=True)
def test_a_link_in_the_storage_is_not_followed(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (tmp_path / "storage/uploads/uploads/u1/v1/link.mp4").symlink_to(secret)
    site.original = "uploads/u1/v1/link.mp4"
    answer = site.get()
    assert answer.status_code in (404, 422) and b"secret" not in answer.content.replace(b"secret.mp4", b"")


def test_sprites_name_their_sheets_as_the_api_does(site: Site) -> None:
    vtt = "WEBVTT\n\n00:00.000 --> 00:01.000\nsprite-0.jpg#xywh=0,0,10,10\n"
    site.storage.put_bytes("sidecars", "keyframes/u1/v1/1.1/sprites.vtt", vtt.encode(), "text/vtt")
    site.storage.put_bytes("sidecars", "keyframes/u1/v1/1.1/sprite-0.jpg", JPEG, "image/jpeg")
    found = site.get("/videos/v1/sprites.vtt")
    assert found.headers["content-type"] == "text/vtt; charset=utf-8"
    assert found.text == vtt.replace("sprite-0", "sprites/0")
    assert site.get("/videos/v1/sprites/0.jpg").content == JPEG
    assert site.get("/videos/v1/sprites/1.jpg").status_code == 404


def test_pictures_are_the_users_own_and_pictures(site: Site) -> None:
    own = {
        "sidecars": ["keyframes/u1/v1/1.1/0.jpg"],
        "uploads": ["faces/u1/p1/photo_1.jpg", "uploads/u1/queries/x.png"],
    }
    for bucket, keys in own.items():
        for key in keys:
            site.storage.put_bytes(bucket, key, JPEG, "image/png")  # type: ignore[arg-type]
            found = site.get(f"/objects/{key}")
            assert found.content == JPEG and found.headers["content-type"] == "image/jpeg"
            assert (
                found.headers["x-content-type-options"] == "nosniff"
                and "immutable" in found.headers["cache-control"]
            )
            assert site.get(f"/objects/{key}", **{"X-User": "u2"}).status_code == 404
    site.storage.put_bytes("uploads", "uploads/u1/queries/page.jpg", HTML, "image/jpeg")
    for key in (
        *(
            "uploads/u1/queries/page.jpg",
            "uploads/u1/v1/film.mp4",
            "keyframes/u2/v1/1.1/0.jpg",
            "keyframes/u1/",
            "",
        ),
        *(
            "keyframes/u1/../u2/x.jpg",
            "keyframes/u1/%2e%2e/u2/x.jpg",
            "keyframes/u1//x",
            "%00",
            "keyframes/u1/%ff",
        ),
        *("sidecars/u1/v1/s.r0.json", "keyframes/u1/v1/" + "x" * 300, "/etc/passwd", "keyframes/u1/a%5cb"),
    ):
        assert site.client.get(f"/objects/{key}").status_code == 404, key


def test_only_pictures_are_stored_to_be_searched_for(site: Site) -> None:
    for data, extension in ((JPEG, "jpg"), (b"\x89PNG\r\n\x1a\nxx", "png"), (b"RIFF0000WEBP", "webp")):
        key = site.client.put("/pictures", content=data).json()["storage_key"]
        assert key.startswith("uploads/u1/queries/") and key.endswith(extension)
        assert site.get(f"/objects/{key}").content == data
    for data in (HTML, b"", b"<svg/>", b"GIF89a"):
        assert site.client.put("/pictures", content=data).status_code == 415
    assert site.client.put("/pictures", content=JPEG + bytes(32 * 2**20)).status_code == 413
