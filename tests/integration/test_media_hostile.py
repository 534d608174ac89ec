"""Hostile files through the split stage: references to other files, mutations by the hundred, endless videos.

Run as a program (``python -m tests.integration.test_media_hostile SECONDS FILE...``) this module splits the files one after
another and prints a line for each and its peak memory: the tests start it so, to see crashes, hangs and memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from shared.errors import BadMedia
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.figures import RecordFigure
from tests.support.hostile_files import remux
from worker.media.decoding import limit_memory
from worker.media.limits import MediaLimits
from worker.media.rendition import make_rendition
from worker.media.split import split

ROOT = Path(__file__).parents[2]
#: The limits that ship: a damaged header may ask for pictures as large as they allow.
LIMITS = MediaLimits()

MUTATED = 320
#: A file of 40 tiny pictures takes about 30 ms; a machine under load some more.
DEADLINE_S = 20
MEMORY_LIMIT_BYTES = 900_000_000
SMALL = Encoding(size=(64, 48))


# --- other files and addresses are never opened -------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A playable file that must not be opened."""
    return make_clip(tmp_path / "secret.ts", (Shot(seed=81, frames=25),), SMALL).path


class Watch:
    """Says whether a file was opened since the last call, by inotify: the kernel's word, whatever library opens it."""

    def __init__(self, path: Path) -> None:
        libc, in_open = ctypes.CDLL(None, use_errno=True), 0x20
        self._watch = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._watch, str(path).encode(), in_open) >= 0

    def opened(self) -> bool:
        try:
            return bool(os.read(self._watch, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._watch)


@pytest.fixture
def opened(secret: Path) -> Iterator[Callable[[], bool]]:
    with closing(Watch(secret)) as watch:
        yield watch.opened


def playlist(kind: str, target: str) -> str:
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n' if kind == "hls-key" else ""
    if kind == "concat":
        return f"ffconcat version 1.0\nfile '{target}'\n"
    return (
        f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n{key}#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n"
    )


@pytest.mark.parametrize("name", ["upload.mp4", "upload.m3u8", "upload.ts"])
@pytest.mark.parametrize("kind", ["hls", "hls-key", "concat"])
def test_a_playlist_never_opens_the_file_it_names(
    tmp_path: Path, secret: Path, opened: Callable[[], bool], kind: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text(playlist(kind, str(secret) if kind == "concat" else secret.name))
    with pytest.raises(BadMedia, match="only names other files"):
        split(path, tmp_path / "out", limits=LIMITS)
    assert not opened()
    if kind != "hls-key" and name == "upload.m3u8":
        # The watch does see it: the same playlist, opened without our white lists.
        av.open(str(path), options={"safe": "0"} if kind == "concat" else {"extension_picky": "0"}).close()
        assert opened()


def test_a_playlist_never_connects(tmp_path: Path) -> None:
    path = tmp_path / "upload.m3u8"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for kind in ("hls-key", "concat", "hls"):
            path.write_text(playlist(kind, url))
            with pytest.raises(BadMedia, match="only names other files"):
                split(path, tmp_path / "out", limits=LIMITS)
            with pytest.raises(BlockingIOError):
                server.accept()
        # It would be seen: the same playlist, opened without our white lists.
        options = {"protocol_whitelist": "file,http,tcp,crypto,data", "extension_picky": "0"}
        with suppress(av.FFmpegError):
            av.open(str(path), options=options, timeout=0.5).close()
        server.accept()[0].close()


@pytest.mark.parametrize(
    "name", ["concat:secret.ts", "subfile,,start,0,end,0,,:secret.ts", "pipe:0", "http:x"]
)
def test_a_name_that_looks_like_a_protocol_is_a_file_name(
    tmp_path: Path, opened: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("not a video\n" * 10)
    with pytest.raises(BadMedia, match="no video format we accept"):
        split(Path(name), tmp_path / "out", limits=LIMITS)
    assert not opened()


def test_quicktime_references_are_not_followed(
    tmp_path: Path, secret: Path, opened: Callable[[], bool]
) -> None:
    """A movie whose track's data lies in another file, by an absolute path."""
    path = make_clip(tmp_path / "upload.mov", (Shot(seed=82, frames=10),), SMALL).path
    path.write_bytes(refer_to(path.read_bytes(), secret))
    with suppress(BadMedia):
        split(path, tmp_path / "out", limits=LIMITS)
    assert not opened()
    with suppress(av.FFmpegError):
        av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}).close()
    assert opened()


def refer_to(movie: bytes, target: Path) -> bytes:
    """Return the movie with its data reference replaced by an alias to ``target`` (moov must come last)."""
    location = str(target).encode()
    location += bytes(len(location) % 2)
    alias = bytes(10) + bytes(1 + 27) + bytes(12) + bytes(1 + 63) + bytes(16)
    alias += struct.pack(">hh", 0, 0) + bytes(16) + struct.pack(">hh", 2, len(location)) + location
    alias += struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    at = movie.index(b"dref") - 4
    old = int.from_bytes(movie[at : at + 4], "big")
    data = bytearray(movie[:at] + dref + movie[at + old :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        size_at = data.index(box) - 4
        size = int.from_bytes(data[size_at : size_at + 4], "big") + len(dref) - old
        data[size_at : size_at + 4] = size.to_bytes(4, "big")
    return bytes(data)


# --- mutations -----------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> list[Path]:
    """Make one tiny file of each container: 40 pictures of two shots, with sound."""
    shots = (Shot(seed=91, frames=20, move="pan"), Shot(seed=92, frames=20, move="zoom"))
    kinds = {
        "a.mp4": ({}, Sound(channels=1, rate_hz=16_000)),
        "b.mkv": ({"pix_fmt": "yuv420p10le"}, Sound(codec="flac", rate_hz=16_000)),
        "c.webm": ({"codec": "libvpx", "options": {"cpu-used": "8"}}, Sound(codec="libopus", rate_hz=48_000)),
        "d.avi": ({"codec": "mpeg4", "options": {}}, Sound(codec="libmp3lame")),
        "e.mov": ({"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}}, Sound(codec="pcm_s16le")),
        "f.ts": ({"codec": "mpeg2video", "options": {}}, Sound(codec="libmp3lame")),
        "g.flv": ({"codec": "flv", "options": {}}, Sound(codec="libmp3lame")),
    }
    return [
        make_clip(folder / name, shots, Encoding(size=(96, 64), **encoding), sound).path
        for name, (encoding, sound) in kinds.items()
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the file with flipped bits, a hole, a moved piece, or its end missing; often in its header."""
    changed = bytearray(data)
    reach = rng.choice([64, 600, len(data), len(data)])
    match rng.choice(["flip", "flip", "many", "truncate", "hole", "move", "header"]):
        case "flip":
            for _ in range(rng.randint(1, 12)):
                changed[rng.randrange(min(reach, len(data)))] ^= 1 << rng.randrange(8)
        case "many":
            for _ in range(len(data) // 50):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "truncate":
            del changed[rng.randrange(len(data)) :]
        case "hole":
            start = rng.randrange(len(data))
            changed[start : start + rng.randint(1, 4000)] = b"\xff" * rng.randint(0, 4000)
        case "move":
            start, size, to = rng.randrange(len(data)), rng.randint(1, 2000), rng.randrange(len(data))
            piece = changed[start : start + size]
            changed[to : to + len(piece)] = piece
        case "header":
            at = data.find(rng.choice(b"mdhd stsz stts tkhd avih strh strf avcC \x44\x89 \xb0".split()))
            for offset in range(4, 4 + rng.randint(1, 24)):
                if 0 <= at < len(data) - 30:
                    changed[at + offset] = rng.choice([0, 0xFF, 0x7F, rng.randrange(256)])
    return bytes(changed)


def test_mutated_files(tmp_path: Path, record_figure: RecordFigure) -> None:
    """Each gives scenes or one clear error: no crash, no hang, no growing memory."""
    originals, rng, files = seeds(tmp_path), random.Random(20_261), []
    for number, original in zip(range(MUTATED), cycle(originals)):
        files.append(tmp_path / f"m{number:03d}{original.suffix}")
        files[-1].write_bytes(mutate(original.read_bytes(), rng))
    outcomes, peak_bytes = split_in_child([*originals, *files])
    assert [outcomes[str(path)]["scenes"] for path in originals] == [2] * len(originals)
    assert len(outcomes) == MUTATED + len(originals)
    errors = [outcome["error"] for outcome in outcomes.values() if "error" in outcome]
    assert 20 < len(errors) < MUTATED  # mutations that hit, and files that survive them
    for error in errors:
        assert not error.endswith(".") and "\n" not in error and len(error) < 300, error
    record_figure("peak memory over mutated files", f"{peak_bytes / 1e6:.0f} MB")
    assert peak_bytes < MEMORY_LIMIT_BYTES


# --- length --------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """A 2-minute clip, and the same repeated by stream copy to an hour: peak memory within 1.3 times."""
    shots = [Shot(seed=100 + i, frames=30 + 17 * (i % 3), move="pan") for i in range(12)]
    short, long = tmp_path / "short.mp4", tmp_path / "long.mp4"
    frames = sum(shot.frames for shot in shots)
    encoding = Encoding(size=(96, 64), times_s=tuple(i * 120 / frames for i in range(frames)))
    make_clip(short, shots, encoding, Sound(channels=1, rate_hz=16_000, duration_s=120.0))
    remux(short, long, times=30)
    short_outcomes, short_bytes = split_in_child([short], deadline_s=60)
    long_outcomes, long_bytes = split_in_child([long], deadline_s=100)
    assert short_outcomes[str(short)]["end_s"] == pytest.approx(120, abs=1)
    assert long_outcomes[str(long)]["end_s"] == pytest.approx(3600, abs=30)
    assert long_outcomes[str(long)]["scenes"] >= 29 * short_outcomes[str(short)]["scenes"]
    assert long_bytes <= 1.3 * short_bytes, (long_bytes, short_bytes)


# --- the child -----------------------------------------------------------------------------------------------------


def split_in_child(
    files: Sequence[Path], deadline_s: int = DEADLINE_S
) -> tuple[dict[str, dict[str, Any]], int]:
    """Split the files in a process of their own; return the outcome of each and the peak memory in bytes.

    Fails when the process dies, or is killed because it takes longer than ``deadline_s`` over one file.
    """
    command = [sys.executable, "-m", __name__, str(deadline_s), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died with {done.returncode} after {answers[-1:]}: {done.stderr[-2000:]}"
    peak_bytes = answers.pop()["peak_bytes"]
    return {answer["file"]: answer for answer in answers}, peak_bytes


def main(deadline_s: str, *files: str) -> None:
    """Split each file, and make its rendition, within the memory of a decoding process; print ``{"file", "scenes", "end_s"}`` or ``{"file", "error"}``, then the peak memory."""
    limit_memory(LIMITS, 2**31)
    for file in files:
        signal.alarm(int(deadline_s))
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = split(Path(file), Path(folder), limits=LIMITS)
            except BadMedia as error:
                print(json.dumps({"file": file, "error": str(error)}), flush=True)
                continue
            scenes = result.scenes
            assert scenes[0].start_s == 0.0 and all(scene.end_s > scene.start_s for scene in scenes), scenes
            assert all(a.end_s == b.start_s for a, b in pairwise(scenes)), scenes
            assert all(scene.keyframes for scene in scenes), scenes
            with suppress(BadMedia):
                make_rendition(Path(file), Path(folder), limits=LIMITS)
            print(json.dumps({"file": file, "scenes": len(scenes), "end_s": scenes[-1].end_s}), flush=True)
    # Not by getrusage: that begins with what the parent held when it started this process.
    peak_kib = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(json.dumps({"peak_bytes": int(peak_kib) * 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
