"""Cheap uploads that ask for expensive work, each through the decoding process with the limits that ship."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from shared.errors import BadMedia, LeaseLost, LimitExceeded, WorkerLost
from shared.settings import Settings
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.hostile_files import MAKERS, make
from worker.media import sandbox
from worker.media.limits import MediaLimits, media_limits
from worker.media.sound import extract_audio, read_excerpt
from worker.media.split import split

ROOT = Path(__file__).parents[2]
LIMITS = MediaLimits()

#: What becomes of each file: the sentence that refuses it, None where it is done.
OUTCOMES = {
    "references.mp4": r"8192x8192 pixels of h264 with 17 pictures at once takes about \d{4} MB, the limit is 768 MB",
    "skipped.mp4": r"pixels in all, more than .*MAX_VIDEO_PIXELS_PER_(S|BYTE)\)",
    "skipped.ts": r"pixels in all, more than 100000 for each of \d+ bytes \(MAX_VIDEO_PIXELS_PER_BYTE\)",
    "exr.mov": r"uses the codec exr, which is not accepted",
    "png64.mov": r"uses the codec png, which is not accepted",
    "silence.mp4": r"The sound goes on to 43000 s, the pictures end at 1 s, the limit is 1800 s more",
    "silence.mkv": r"The sound goes on to 1801 s, the pictures end at 1 s, the limit is 1800 s more",
    "late.mkv": None,
    "slow-sound.mkv": r"The sound has 1 samples a second, the least is 4000 \(MIN_AUDIO_RATE_HZ\)",
    "streams.mkv": r"The file has \d+ streams, the limit is 16",
    "rate.mp4": r"The header gives 30000 frames a second, the limit is 240",
    "boxes.mp4": r"no video stream",
    "changing.mp4": None,
    "vp8.webm": r"8192x8192 pixels of vp8 with 4 pictures at once",
    "large.mpg": None,
}
MEMORY_BYTES = 1_000_000_000
TIME_S = 60.0


DecodeWith = Callable[[str], None]
Started = Callable[[], list[psutil.Process]]


@pytest.fixture
def started() -> Started:
    """The children that the test has started; servers of other tests may be children of this process too."""
    others = {child.pid for child in psutil.Process().children()}
    return lambda: [child for child in psutil.Process().children() if child.pid not in others]


def children_cpu_s() -> float:
    now = os.times()
    return now.children_user + now.children_system


@contextmanager
def watched(started: Started) -> Iterator[list[int]]:
    """How many bytes the started processes have held together, one look after another."""
    held_bytes, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            held = 0
            with suppress(psutil.Error):
                for child in started():
                    held += sum(p.memory_info().rss for p in (child, *child.children(recursive=True)))
            held_bytes.append(held)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield held_bytes
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def test_every_file_has_its_outcome() -> None:
    assert OUTCOMES.keys() == MAKERS.keys()


def test_the_settings_are_the_limits() -> None:
    assert media_limits(Settings()) == LIMITS


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_cheap_upload_costs_little(folder: Path, tmp_path: Path, started: Started, name: str) -> None:
    """Each is refused in one sentence, or done, in less than a minute and a gigabyte."""
    path = make(name, folder)
    wanted = OUTCOMES[name]
    began_s, before_s = time.monotonic(), children_cpu_s()
    with watched(started) as held_bytes:
        if wanted is None:
            assert sandbox.split(path, tmp_path, limits=LIMITS).scenes
        else:
            with pytest.raises(BadMedia, match=wanted) as refusal:
                sandbox.split(path, tmp_path, limits=LIMITS)
            assert not str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
    took_s, cpu_s, peak_bytes = time.monotonic() - began_s, children_cpu_s() - before_s, max(held_bytes)
    print(
        f"{name}: {path.stat().st_size} bytes, {took_s:.1f} s, {cpu_s:.1f} CPU s, {peak_bytes / 1e6:.0f} MB"
    )
    path.unlink()
    assert cpu_s < TIME_S / 2
    # Beside many others the time on the clock says nothing.
    assert took_s < TIME_S or os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    assert peak_bytes < MEMORY_BYTES
    assert not started()


@pytest.mark.parametrize("name", ["skipped.ts", "changing.mp4", "large.mpg", "silence.mkv"])
def test_its_rendition_costs_little_too(folder: Path, tmp_path: Path, started: Started, name: str) -> None:
    path = make(name, folder)
    before_s = children_cpu_s()
    with watched(started) as held_bytes, suppress(BadMedia):
        sandbox.make_rendition(path, tmp_path, limits=LIMITS)
    cpu_s, peak_bytes = children_cpu_s() - before_s, max(held_bytes)
    print(f"{name}: {cpu_s:.1f} CPU s, {peak_bytes / 1e6:.0f} MB")
    path.unlink()
    assert cpu_s < TIME_S / 2 and peak_bytes < MEMORY_BYTES
    assert not started()


def test_a_rendition_of_too_much_memory_or_time_is_refused(tmp_path: Path) -> None:
    shots = (Shot(seed=904, frames=8),)
    large = Encoding(codec="mjpeg", pix_fmt="yuvj420p", options={}, size=(1920, 1080))
    path = make_clip(tmp_path / "a.mov", shots, large).path
    with pytest.raises(LimitExceeded, match=r"96 MB.*MEDIA_MEMORY_MB"):
        sandbox.make_rendition(path, tmp_path / "out", limits=MediaLimits(media_memory_mb=96))
    slow = MediaLimits(media_cpu_base_s=0.02, media_cpu_per_s=0.0)
    with pytest.raises(LimitExceeded, match="MEDIA_CPU_BASE_S"):
        sandbox.make_rendition(path, tmp_path / "out", limits=slow)
    found = sandbox.make_rendition(path, tmp_path / "out", limits=LIMITS)
    assert (found.how, found.path, found.size) == ("transcode", tmp_path / "out" / "video.mp4", (1920, 1080))


@pytest.fixture
def decode_with(monkeypatch: pytest.MonkeyPatch) -> DecodeWith:
    """Let the decoding process run this code."""
    return lambda code: monkeypatch.setattr(sandbox, "COMMAND", (sys.executable, "-P", "-c", code))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    shots = (Shot(seed=901, frames=40), Shot(seed=902, frames=40))
    return make_clip(folder / "a.mp4", shots, Encoding(), Sound()).path


def test_the_process_gives_what_the_function_gives(clip: Path, tmp_path: Path) -> None:
    told: list[float] = []
    apart = sandbox.split(clip, tmp_path / "apart", limits=LIMITS, on_progress=told.append)
    here = split(clip, tmp_path / "here", limits=LIMITS)
    assert apart.audio is not None and here.audio is not None
    assert apart.audio.read_bytes() == here.audio.read_bytes()
    frames = [[k for scene in side.scenes for k in scene.keyframes] for side in (apart, here)]
    assert [k.path.read_bytes() for k in frames[0]] == [k.path.read_bytes() for k in frames[1]]
    # But for the folder, all is equal, in the same types.
    assert repr(apart).replace(str(tmp_path / "apart"), str(tmp_path / "here")) == repr(here)
    audio, windows = sandbox.extract_audio(clip, tmp_path / "apart", limits=LIMITS)
    expected = extract_audio(clip, tmp_path / "here", limits=LIMITS)
    assert audio == apart.audio and windows == expected[1] == here.windows
    assert expected[0] is not None and audio.read_bytes() == expected[0].read_bytes()
    asked = {"start_s": 0.5, "end_s": 1.5, "max_s": 60.0, "limits": LIMITS}
    samples = sandbox.read_excerpt(clip, tmp_path / "apart", **asked)
    assert samples.tolist() == read_excerpt(clip, tmp_path / "here", **asked).tolist()


def test_the_process_starts_soon_and_light(clip: Path, tmp_path: Path) -> None:
    """It must not load what it has no use for; its start is what a short request pays."""
    code = (
        "import sys, worker.media.decoding, worker.media.split, worker.media.sound\n"
        "print([n for n in ('torch', 'celery', 'sqlalchemy', 'pydantic', 'structlog') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    costs_s = []
    for _ in range(5):
        before_s = children_cpu_s()
        with pytest.raises(BadMedia):
            sandbox.split(Path(__file__), tmp_path, limits=LIMITS)
        costs_s.append(children_cpu_s() - before_s)
    print(f"start of the decoding process: {min(costs_s):.2f} CPU s")
    assert min(costs_s) < 0.35


def test_memory_past_the_limit_is_refused_by_name(tmp_path: Path, decode_with: DecodeWith) -> None:
    """Also where no estimate has seen it coming: what the interpreter takes leaves nothing for a picture."""
    limits = MediaLimits(media_memory_mb=96)
    path = make_clip(tmp_path / "b.mp4", (Shot(seed=903, frames=4),), Encoding(size=(1920, 1080))).path
    with pytest.raises(LimitExceeded, match=r"96 MB.*MEDIA_MEMORY_MB"):
        sandbox.split(path, tmp_path / "out", limits=limits)
    code = (
        "import sys, json; from pathlib import Path\n"
        "from worker.media import decoding, memory, split\n"
        "memory._BENEFIT_OF_DOUBT = 100\n"
        "sys.exit(decoding.main())"
    )
    decode_with(code)
    with pytest.raises(LimitExceeded, match=r"limit of 96 MB \(MEDIA_MEMORY_MB\)"):
        sandbox.split(path, tmp_path / "out", limits=limits)


def test_cpu_time_past_the_limit_is_refused_for_good(clip: Path, tmp_path: Path) -> None:
    limits = MediaLimits(media_cpu_base_s=0.02, media_cpu_per_s=0.0)
    with pytest.raises(LimitExceeded, match="MEDIA_CPU_BASE_S") as refusal:
        sandbox.split(clip, tmp_path, limits=limits)
    assert not refusal.value.retryable


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("while True: pass", LimitExceeded, "more than 1 s of CPU time"),
        ("import os; os.abort()", BadMedia, r"crash \(SIGABRT\)"),
        ("import os; os.kill(os.getpid(), 11)", BadMedia, r"crash \(SIGSEGV\)"),
        ("import os; os.kill(os.getpid(), 9)", WorkerLost, "status -9"),
        ("import sys; sys.exit(3)", WorkerLost, "status 3"),
        ("import sys; sys.stdout.write('x' * 10**6); sys.stdout.flush()", BadMedia, "answer without end"),
    ],
)
def test_what_a_decoder_may_do(
    decode_with: DecodeWith,
    started: Started,
    clip: Path,
    tmp_path: Path,
    code: str,
    error: type[Exception],
    says: str,
) -> None:
    decode_with(code)
    with pytest.raises(error, match=says):
        sandbox.split(clip, tmp_path, limits=MediaLimits(media_cpu_base_s=1.0))
    assert not started()


def test_it_stops_when_the_caller_says(
    decode_with: DecodeWith, started: Started, clip: Path, tmp_path: Path
) -> None:
    decode_with("import time; time.sleep(600)")

    def lost(_: float) -> None:
        raise LeaseLost("given to another worker")

    with pytest.raises(LeaseLost):
        sandbox.split(clip, tmp_path, limits=LIMITS, on_progress=lost)
    assert not started()


def test_it_ends_with_its_parent(clip: Path, tmp_path: Path) -> None:
    """As when a node is killed: the process does not live on."""
    code = (
        "import sys; from pathlib import Path; from worker.media import sandbox; from worker.media.limits import MediaLimits\n"
        "inner = 'import json, sys; from worker.media import decoding; request = json.loads(sys.stdin.readline());'\n"
        "inner += 'decoding.end_with(request[\"parent\"]); decoding.tell(progress=0.1); import time; time.sleep(600)'\n"
        "sandbox.COMMAND = (sys.executable, '-P', '-c', inner)\n"
        f"sandbox.split(Path({str(clip)!r}), Path({str(tmp_path)!r}), limits=MediaLimits(), on_progress=lambda f: print(f, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        while b"0.1" not in parent.stdout.readline():
            pass
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    child.wait(10)
    assert not child.is_running()


def test_it_gets_no_secret(
    monkeypatch: pytest.MonkeyPatch, decode_with: DecodeWith, clip: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("STORAGE_SECRET_KEY", "hidden")
    decode_with("import os, sys; sys.stderr.write(str(dict(os.environ)))")
    with pytest.raises(WorkerLost, match="without an answer"):
        sandbox.split(clip, tmp_path, limits=LIMITS)
    told = (tmp_path / sandbox.STDERR_NAME).read_text()
    assert "PYTHONPATH" in told and "hidden" not in told
