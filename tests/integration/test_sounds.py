"""Sounds of requests on both storages: whole when they are heard, and gone afterwards, whatever happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from api import sounds
from api.asking import Asking
from api.sounds import Sound
from api.uploads import Uploads
from shared.errors import ObjectMissing
from shared.settings import Settings
from shared.storage import Storage, configured_storage
from tests.support.s3_servers import variables_of, with_own_buckets

MiB = 2**20


@pytest.fixture(params=["local", "moto"])
def uploads(request: pytest.FixtureRequest, tmp_path: Path) -> Uploads:
    """The service whose sweep finds everything old."""
    values: dict[str, Any] = {"redis_url": "redis://x", "storage_root": tmp_path / "storage"}
    if request.param == "moto":
        values |= variables_of(with_own_buckets(request.getfixturevalue("moto")))
    settings = Settings(**values)
    storage = configured_storage(settings)
    storage.ensure_buckets()
    # An hour later than an upload ends, which is what the sweep waits for.
    old = settings.model_copy(update={"query_picture_ttl_s": -1.0, "upload_ttl_s": -3601.0})
    return Uploads(old, storage, cast(Redis, None), cast(Asking, None))


def stored(storage: Storage) -> list[str]:
    return [info.key for bucket in ("uploads", "tmp") for info in storage.list(cast(Any, bucket), "")]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_sound_that_comes_in_pieces_is_whole_and_then_removed(uploads: Uploads) -> None:
    storage, data = uploads._storage, os.urandom(12 * MiB + 11)

    async def story() -> None:
        async with sounds.receiving(storage, uploads, "ann") as sound:
            for at in range(0, len(data), 700_001):
                await sound.write(data[at : at + 700_001])
            await sound.finish()
            assert sound.key.startswith("uploads/ann/queries/")
            assert storage.get_bytes("uploads", sound.key) == data
        assert stored(storage) == []
        with pytest.raises(ZeroDivisionError):
            async with sounds.receiving(storage, uploads, "ann") as sound:
                await sound.write(data)
                raise ZeroDivisionError
        assert stored(storage) == []

    run(story())


def test_what_a_dead_process_left_is_swept(uploads: Uploads) -> None:
    storage = uploads._storage
    half, whole = Sound(storage, "ann"), Sound(storage, "ann")

    async def leave() -> None:
        for sound in (half, whole):
            sound._begin()
            await sound.write(os.urandom(7 * MiB))
        half._appender.flush()
        half._opened.close()
        await whole.finish()

    run(leave())
    assert storage.exists("uploads", whole.key) and storage.received_bytes(half._incoming) == 7 * MiB
    uploads._sweep_old()
    assert stored(storage) == []
    with pytest.raises(ObjectMissing):
        storage.received_bytes(half._incoming)
