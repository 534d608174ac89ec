"""The typed clients against a whole fleet."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from shared.client import AsyncClient
from shared.contracts import VideoStatus
from shared.errors import InvalidRequest, NotFound
from tests.support.fleet import Fleet
from tests.support.threads import at_once

USER = "client-user"


def test_a_video_is_followed_from_its_receipt_to_its_end(fleet: Fleet, silent: Path) -> None:
    fleet.process(silent, "followed", USER)
    seen = list(fleet.client.follow("followed", USER, timeout_s=120))
    assert [seen[-1].state, *{status.state for status in seen[:-1]} - {"uploaded", "processing"}] == [
        "indexed"
    ]
    assert len(seen) > 1 and all(one != other for one, other in pairwise(seen))
    with pytest.raises(NotFound):
        next(fleet.client.follow("followed", "another-user"))


def test_coroutines_follow_and_ask(fleet: Fleet, silent: Path) -> None:
    async def use() -> tuple[list[VideoStatus], list[str]]:
        async with AsyncClient(fleet.redis_url) as client:
            fleet.process(silent, "followed-later", USER)

            async def ends() -> list[VideoStatus]:
                return [status async for status in client.follow("followed-later", USER, timeout_s=120)]

            seen, *found = await asyncio.gather(
                ends(), *(client.embed_texts([f"text {n}"]) for n in range(20))
            )
            with pytest.raises(InvalidRequest, match="limit=0"):
                await client.scenes("followed-later", USER, limit=0)
            text, view = await client.create_key(USER, name="of a test")
            assert (await client.check_key(text)).user_id == view.user_id == USER
            await client.end_key(view.key_id)
            return seen, [vectors.model for vectors in found]

    seen, models = asyncio.run(use())
    assert seen[-1].state == "indexed"
    assert models == ["all-minilm-l6-v2"] * 20


def test_threads_share_a_client(fleet: Fleet) -> None:
    found = at_once([lambda n=n: fleet.client.embed_texts([f"text {n}", "the same"]) for n in range(50)])
    assert len({vectors.vectors[0] for vectors in found}) == 50
    assert len({tuple(round(x, 3) for x in vectors.vectors[1]) for vectors in found}) == 1
