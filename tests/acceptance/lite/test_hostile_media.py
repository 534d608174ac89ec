"""Cheap uploads that ask for expensive work, through a media node: refused once, and another user's videos go on meanwhile."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.test_media_costs import MEMORY_BYTES, OUTCOMES
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.fleet import Fleet, eventually
from tests.support.hostile_files import make

#: One of each way to be expensive; the integration test has them all.
NAMES = ("references.mp4", "skipped.ts", "silence.mkv", "boxes.mp4")


@contextmanager
def watched_memory(node: psutil.Process) -> Iterator[list[int]]:
    """Looks at the memory that a node, its pool and what they start hold together: bytes, shared pages once."""
    done, held_bytes = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.25):
            held = 0
            for process in (node, *node.children(recursive=True)):
                with suppress(psutil.Error):
                    held += process.memory_full_info().pss
            held_bytes.append(held)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield held_bytes
    finally:
        done.set()
        thread.join()


@pytest.mark.timeout(900)
def test_others_go_on(fleet: Fleet, tmp_path: Path) -> None:
    """Every hostile video fails at its first attempt, with its sentence; another user's are split in between."""
    sentences = {name.partition(".")[0]: OUTCOMES[name] for name in NAMES}
    files = [make(name, tmp_path) for name in NAMES]
    shots = (Shot(seed=911, frames=40), Shot(seed=912, frames=40))
    good = make_clip(tmp_path / "good.mp4", shots, Encoding(), Sound()).path
    node = psutil.Process(fleet.nodes["media"].process.pid)
    before = {process.pid for process in node.children()}
    with watched_memory(node) as held_bytes:
        for video_id, path in zip(sentences, files, strict=True):
            fleet.process(path, video_id, user_id="mallory")
            fleet.process(good, f"beside-{video_id}", user_id="alice")
        ended = fleet.wait_ended(sentences, user_id="mallory", within_s=400)
        split = "SELECT job_id FROM jobs WHERE user_id = 'alice' AND stage = 'split' AND state = 'done'"
        eventually(lambda: len(fleet.rows(split)) == len(NAMES), within_s=240, what="alice's were split")
    for video_id, status in ended.items():
        (job,) = fleet.of_video("jobs", video_id, "stage = 'split'", user_id="mallory")
        assert re.search(str(sentences[video_id]), job["error"]), job
        assert (status.state, job["failures"]) == ("failed", 1), job
        assert job["error_class"] in ("BadMedia", "LimitExceeded"), job
    print(f"peak of the media node {max(held_bytes) / 1e6:.0f} MB")
    assert max(held_bytes) < MEMORY_BYTES
    assert {process.pid for process in node.children()} == before
