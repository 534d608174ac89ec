"""Links that requests hand out, followed by somebody who knows nothing of us, on a server that verifies signatures."""

from __future__ import annotations

import pytest
import urllib3
from sqlalchemy.orm import Session

from db.engine import transact
from db.expressions import NOW
from db.scenes import Words, scene_id, write_scenes
from db.tables import Video
from shared.storage import Storage, StorageConfig
from tasks import people, search
from tests.integration.conftest import Configure
from tests.support.ledger import scene_rows
from tests.support.s3_servers import variables_of
from tests.support.scenes import publish_scene
from tests.support.services import RedisServer

pytestmark = pytest.mark.usefixtures("database")

PICTURE = b"bytes of a keyframe"
BROWSER = urllib3.PoolManager(retries=False, timeout=20)


@pytest.fixture
def storage(swift: StorageConfig, configure: Configure, redis_server: RedisServer) -> Storage:
    """The storage of this process's runtime."""
    made = configure(**variables_of(swift), REDIS_URL=redis_server.url).storage
    made.ensure_buckets()
    return made


def test_the_keyframes_of_a_hit_are_downloaded_by_their_links(storage: Storage) -> None:
    keys = [f"keyframes/u1/v/1.1/{number}.jpg" for number in range(2)]
    for key in keys:
        storage.put_bytes("sidecars", key, PICTURE + key.encode(), "image/jpeg")

    def publish(session: Session) -> None:
        columns = {"state": "indexed", "run": 1, "published_run": 1, "indexed_at": NOW}
        session.add(Video(video_id="v", user_id="u1", storage_key="k", **columns))
        session.flush()
        frame = {"ts_s": 0.5, "width": 8, "height": 8}
        frames = [{**frame, "ordinal": number, "key": key} for number, key in enumerate(keys)]
        write_scenes(session, "v", "u1", 1, [{**scene_rows(1)[0], "keyframes": frames}])
        publish_scene(session, scene_id("v", 1, 0), Words("a hot drink", "en"), "sidecars/u1/v/s.json", {})

    transact(publish)
    (hit,) = search.scenes(user_id="u1", query="drink", mode="keyword")["hits"]
    for key, url in zip(keys, hit["keyframe_urls"], strict=True):
        answer = BROWSER.request("GET", url)
        assert (answer.status, answer.data) == (200, PICTURE + key.encode())
        assert BROWSER.request("GET", url.replace(key, keys[0] + "x")).status == 403
        assert BROWSER.request("DELETE", url).status == 403


def test_a_photo_is_uploaded_by_the_link_it_was_given(storage: Storage) -> None:
    person = people.create(user_id="u1", name="Ann")["person_id"]
    slot = people.add_photo(user_id="u1", person_id=person, extension="png", expires_s=60)
    assert BROWSER.request("PUT", slot["upload_url"], body=PICTURE).status == 200
    assert storage.get_bytes("uploads", slot["storage_key"]) == PICTURE
    other = slot["upload_url"].replace(slot["storage_key"], f"faces/u2/{person}/photo_1.png")
    assert BROWSER.request("PUT", other, body=PICTURE).status == 403
