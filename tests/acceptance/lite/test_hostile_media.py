"""Cheap uploads that ask for expensive work, through a media node: refused once, and another user's videos go on meanwhile."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil
import pytest

from tests.integration.test_media_costs import MEMORY_BYTES, OUTCOMES
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.fleet import Fleet, eventually
from tests.support.hostile_files import make

#: One of each way to be expensive; the integration test has them all.
NAMES = ("references.mp4", "skipped.ts", "exr.mov", "silence.mkv", "slow-sound.mkv", "boxes.mp4")


class Memory:
    """The most memory that a node, its pool and what they start have held together, in bytes (shared pages once)."""

    def __init__(self, node: psutil.Process) -> None:
        self._node = node
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_bytes = 0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            held = 0
            for process in (self._node, *self._node.children(recursive=True)):
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, held)


@pytest.mark.timeout(900)
def test_others_go_on(fleet: Fleet, tmp_path: Path) -> None:
    """Every hostile video fails at its first attempt, with its sentence; another user's are split in between."""
    files = {name: make(name, tmp_path) for name in NAMES}
    good = make_clip(
        tmp_path / "good.mp4", (Shot(seed=911, frames=40), Shot(seed=912, frames=40)), Encoding(), Sound()
    ).path
    node = psutil.Process(fleet.nodes["media"].process.pid)
    before = {process.pid for process in node.children()}
    with Memory(node) as memory:
        for name, path in files.items():
            fleet.process(path, name.partition(".")[0], user_id="mallory")
            fleet.process(good, f"beside-{name.partition('.')[0]}", user_id="alice")
        ended = fleet.wait_ended([name.partition(".")[0] for name in NAMES], user_id="mallory", within_s=400)
        split = "SELECT job_id FROM jobs WHERE user_id = 'alice' AND stage = 'split' AND state = 'done'"
        eventually(lambda: len(fleet.rows(split)) == len(NAMES), within_s=240, what="alice's were split")
    assert {status.state for status in ended.values()} == {"failed"}
    failed = fleet.rows(
        "SELECT external_id, j.error, j.error_class, j.failures FROM jobs j JOIN videos USING (video_id)"
        " WHERE j.user_id = 'mallory' AND stage = 'split'"
    )
    assert len(failed) == len(NAMES)
    sentences = {name.partition(".")[0]: OUTCOMES[name] for name in NAMES}
    for row in failed:
        assert re.search(str(sentences[row["external_id"]]), row["error"]), row
        assert row["failures"] == 1 and row["error_class"] in ("BadMedia", "LimitExceeded"), row
    print(f"peak of the media node {memory.peak_bytes / 1e6:.0f} MB")
    assert memory.peak_bytes < MEMORY_BYTES
    assert {process.pid for process in node.children()} == before
