"""What a player gets from a real fleet: a video that no browser plays gets an MP4, its sprites and its timeline."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from shared.contracts import VideoMedia
from tests.acceptance.lite.conftest import VIEWER
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.fleet import Fleet, eventually

USER = "player"


@pytest.fixture(scope="module")
def divx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "divx.avi"
    shots = [Shot(seed=11, frames=40), Shot(seed=12, frames=40)]
    return make_clip(path, shots, Encoding(codec="mpeg4", options={}), Sound(codec="libmp3lame")).path


def played(fleet: Fleet, video_id: str, user_id: str = USER) -> VideoMedia:
    """What is played of a video once its rendition has ended."""
    fleet.wait_rendition(video_id, user_id)
    return fleet.client.media(video_id, user_id)


def test_what_no_browser_plays_gets_an_mp4_and_goes_with_its_video(fleet: Fleet, divx: Path) -> None:
    fleet.index(divx, "divx", USER)
    status = fleet.client.status("divx", USER)
    assert status.state == "indexed" and status.stages[-1].stage == "rendition"
    found = played(fleet, "divx")
    assert (found.media.playable, found.media.bucket) == ("rendition", "sidecars")
    assert found.media.reason == "browsers don't play mpeg4" and found.media.key is not None
    assert fleet.client.status("divx", USER).state == "indexed"
    with av.open(str(fleet.storage.local_path("sidecars", found.media.key))) as container:
        video = container.streams.video[0].codec_context
        assert (video.name, video.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 320, 180)
        assert container.duration / 1e6 == pytest.approx(found.duration_s, abs=0.1)
    assert found.sprites_prefix is not None and found.sprite_sheets == 1
    stored = {key for key in fleet.objects() if f"/{USER}/divx/" in key}
    assert {
        found.media.key,
        *(found.sprites_prefix + name for name in ("sprites.vtt", "sprite-0.jpg")),
    } <= stored
    page = fleet.client.timeline("divx", USER)
    assert (page.media, page.sprites, page.duration_s) == (found.media, True, found.duration_s)
    assert [scene.idx for scene in page.scenes] == [0, 1] and page.next_after_idx is None
    fleet.client.delete("divx", USER)
    eventually(
        lambda: not [key for key in fleet.objects() if f"/{USER}/divx/" in key],
        within_s=60,
        what="all is erased",
    )


def test_the_sample_plays_as_it_is(indexed: Fleet) -> None:
    found = played(indexed, "sample", VIEWER)
    assert (found.media.playable, found.media.reason, found.media.key) == (
        "original",
        None,
        found.original_key,
    )
    page = indexed.client.timeline("sample", VIEWER, limit=2)
    assert page.next_after_idx == 1 and page.sprites
    words = [word for scene in page.scenes for said in scene.segments for word in said.words]
    assert words and all(word.start_s <= word.end_s for word in words)
