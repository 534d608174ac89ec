"""Decodes in a separate process with memory and CPU limits, so that no file can harm the node.

The functions here take and return what those of the same names in ``split`` and ``sound`` do, and raise the same errors;
``decoding`` is what runs on the other side. Imports no decoder.

The process has none of the node's secrets: of the environment it gets the few variables that an interpreter needs. It
ends with its parent. Limits: its memory by the kernel where that is possible (Linux), else by looking ten times a second;
CPU time by itself between packets, and from here while it is silent.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import TypeAdapter

from shared.errors import BadMedia, LimitExceeded, StageTimeout, WorkerLost
from shared.logs import get_logger
from shared.settings import process_environment

from .decoding import RESULT_NAME, SAMPLES_NAME, SPAN_NAMES as SPAN_NAMES, more_memory_mb
from .limits import MediaLimits, no_memory
from .results import THUMBS_NAME, Mode, Rendition, Span, SpanFiles, SpansDiffer, SplitResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = get_logger(__name__)

#: -P: its working folder contains files of users.
COMMAND = (sys.executable, "-P", "-m", "worker.media.decoding")

#: The file of the process's stderr, in the job's folder.
STDERR_NAME = "decoding.log"

#: Interval at which the process is checked, seconds.
_LOOK_S = 0.1
#: How often the caller hears about progress, seconds.
_REPORT_S = 0.5
#: A process that uses no CPU for this long waits for an unavailable disk.
_STUCK_S = 120.0
#: How long it may take to end after its last word, seconds.
_END_S = 60.0
#: No line of it is longer than this, in bytes, nor its answer.
_MAX_LINE_BYTES, _MAX_RESULT_BYTES = 2**16, 256 * 2**20

#: Signals caused by the file, not by a kill from outside.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)

_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR", "LANG", "LC_ALL", "TZ")

#: The folder that holds our packages.
_ROOT = Path(__file__).resolve().parents[2]


def split(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    mode: Mode = "exact",
    part_s: float = 120.0,
    span_s: float = 0.0,
    weights: Path | None = None,
    min_confidence: float = 0.5,
    on_progress: Callable[[float], None] | None = None,
    wall_s: float = float("inf"),
) -> SplitResult | tuple[Span, ...]:
    """Do ``split.split`` in a process of its own; past ``wall_s`` seconds the file is refused.

    Of a file longer than ``span_s`` (0: of none) only the spans are returned that ``spans.plan_spans`` finds, if it does.
    Raises as that does, and StageTimeout when the disk does not answer, WorkerLost when the process was killed.
    """
    decoding = _Decoding(out_dir, limits, on_progress, wall_s)
    found = decoding.run(
        "split",
        path,
        mode=mode,
        part_s=part_s,
        span_s=span_s,
        weights=str(weights.resolve()) if weights else None,
        min_confidence=min_confidence,
    )
    if "spans" in found:
        return tuple(Span(**span) for span in found["spans"])
    for keyframe in _keyframes(found):
        keyframe["path"] = out_dir / Path(keyframe["path"]).name
    found["audio"] = _own(out_dir, found["audio"])
    return _split_result(out_dir, found)


def split_span(
    path: Path,
    out_dir: Path,
    *,
    span: Span,
    limits: MediaLimits,
    mode: Mode,
    weights: Path | None = None,
    min_confidence: float = 0.5,
    on_progress: Callable[[float], None] | None = None,
    wall_s: float = float("inf"),
) -> SpanFiles:
    """Do ``split.split_span`` in a process of its own; raises as ``split``, and SpansDiffer."""
    decoding = _Decoding(out_dir, limits, on_progress, wall_s)
    found = decoding.run(
        "split_span",
        path,
        span=asdict(span),
        mode=mode,
        weights=str(weights.resolve()) if weights else None,
        min_confidence=min_confidence,
    )
    candidates = (picture for end in ("head", "tail") for picture, *_ in found[end])
    return SpanFiles(
        found=out_dir / RESULT_NAME,
        thumbs=out_dir / THUMBS_NAME,
        pictures=tuple(out_dir / Path(k["path"]).name for k in (*_keyframes(found), *candidates)),
    )


def join_spans(folder: Path, *, count: int, limits: MediaLimits, sound_s: float) -> SplitResult:
    """Do ``spans.join_spans`` in a process of its own; raises as ``split``, and SpansDiffer.

    Args:
        folder: has the files of ``count`` spans, named as ``SPAN_NAMES`` says, and gets the sprites. The paths of keyframes
            are the number of their span and their name there.
    """
    found = _Decoding(folder, limits, None, float("inf")).run(
        "join_spans", folder, count=count, sound_s=sound_s
    )
    for keyframe in _keyframes(found):
        number, name = Path(keyframe["path"]).parts
        keyframe["path"] = Path(str(int(number)), name)
    return _split_result(folder, found)


def _keyframes(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [keyframe for scene in found["scenes"] for keyframe in scene["keyframes"]]


def _split_result(out_dir: Path, found: dict[str, Any]) -> SplitResult:
    # The process may name no file elsewhere.
    sprites = found["sprites"]
    sprites["sheets"] = [out_dir / Path(sheet).name for sheet in sprites["sheets"]]
    sprites["index"] = out_dir / Path(sprites["index"]).name
    return TypeAdapter(SplitResult).validate_python(found)


def make_rendition(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    on_progress: Callable[[float], None] | None = None,
    wall_s: float = float("inf"),
) -> Rendition:
    """Do ``rendition.make_rendition`` in a process of its own, at the lowest priority; raises as ``split``."""
    found = _Decoding(out_dir, limits, on_progress, wall_s).run("make_rendition", path)
    found["path"] = _own(out_dir, found["path"])
    return TypeAdapter(Rendition).validate_python(found)


def extract_audio(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    part_s: float = 120.0,
    on_progress: Callable[[float], None] | None = None,
    wall_s: float = float("inf"),
) -> tuple[Path | None, tuple[tuple[float, float], ...]]:
    """Do ``sound.extract_audio`` in a process of its own; raises as ``split``."""
    found = _Decoding(out_dir, limits, on_progress, wall_s).run("extract_audio", path, part_s=part_s)
    return _own(out_dir, found["audio"]), tuple((start_s, end_s) for start_s, end_s in found["windows"])


def read_excerpt(
    path: Path,
    folder: Path,
    *,
    start_s: float,
    end_s: float | None,
    max_s: float,
    limits: MediaLimits,
    wall_s: float = float("inf"),
) -> NDArray[np.int16]:
    """Do ``sound.read_excerpt`` in a process of its own; raises as ``split``."""
    import numpy as np

    decoding = _Decoding(folder, limits, None, wall_s)
    decoding.run("read_excerpt", path, start_s=start_s, end_s=end_s, max_s=max_s)
    return np.fromfile(folder / SAMPLES_NAME, np.int16)


def _own(folder: Path, path: str | None) -> Path | None:
    """Return the file of that name in the folder: the process may name no file elsewhere."""
    return folder / Path(path).name if path else None


@dataclass
class _Decoding:
    """One run of the other process."""

    folder: Path
    limits: MediaLimits
    on_progress: Callable[[float], None] | None
    wall_s: float
    fraction: float = 0.0
    answer: dict[str, Any] | None = None
    rest: bytes = b""

    def run(self, kind: str, path: Path, **arguments: Any) -> dict[str, Any]:
        """Decode; return what the process wrote down. Raises as ``split``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        request = {
            "kind": kind,
            "path": str(path.resolve()),
            "folder": str(self.folder.resolve()),
            "limits": asdict(self.limits),
            "arguments": arguments,
            "parent": os.getpid(),
        }
        with (
            (self.folder / STDERR_NAME).open("wb") as stderr,
            Popen(
                COMMAND, stdin=PIPE, stdout=PIPE, stderr=stderr, cwd=self.folder, env=_environment()
            ) as process,
        ):
            assert process.stdin is not None
            try:
                # The pipe stays open, and its end tells the process that this one has died.
                with suppress(BrokenPipeError):  # it died: its status says why
                    process.stdin.write(json.dumps(request).encode() + b"\n")
                    process.stdin.flush()
                self._follow(process, more_memory_mb(arguments))
                process.wait(_END_S)
            except BaseException:
                process.kill()
                raise
        self._judge(process.returncode)
        result = self.folder / RESULT_NAME
        if not result.is_file():
            raise WorkerLost("the process that decoded the file ended without an answer")
        if result.stat().st_size > _MAX_RESULT_BYTES:
            raise LimitExceeded("The video has too many scenes to write down; cut the file up")
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    def _follow(self, process: Popen[bytes], more_mb: int) -> None:
        """Read what the process says until it ends; raises for what it may not do, and what ``on_progress`` raises."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        watch = _Watch(process.pid, self.limits, self.wall_s, more_mb)
        reported_s = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(_LOOK_S):
                    data = process.stdout.read(_MAX_LINE_BYTES)
                    if data == b"":
                        return
                    if data:
                        self._hear(data)
                        watch.hear()
                watch.look()
                if self.on_progress is not None and time.monotonic() - reported_s >= _REPORT_S:
                    reported_s = time.monotonic()
                    self.on_progress(self.fraction)

    def _hear(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                fields = json.loads(line)
            except ValueError:
                continue  # some library's own words
            if not isinstance(fields, dict):
                continue
            if "progress" in fields:
                self.fraction = max(self.fraction, float(fields["progress"]))
            else:
                self.answer = fields
        if len(self.rest) > _MAX_LINE_BYTES:
            raise BadMedia("The file made its decoder answer without end: it is damaged; export it again")

    def _judge(self, status: int) -> None:
        """Raise the error that the process reported, or that its exit status means."""
        if self.answer is not None:
            message = str(self.answer.get("message", ""))
            match self.answer.get("error"):
                case "BadMedia":
                    raise BadMedia(message)
                case "LimitExceeded":
                    raise LimitExceeded(message)
                case "SpansDiffer":
                    raise SpansDiffer(message)
                case "OSError":
                    raise OSError(int(self.answer.get("errno") or 0), message)
            raise RuntimeError(f"internal error while decoding: {message}")
        if status == 0:
            return
        stderr = (self.folder / STDERR_NAME).read_bytes()[-2000:].decode(errors="replace")
        log.error("decoding process died", status=status, stderr=stderr)
        if -status in _CRASHES:
            raise BadMedia(
                f"The file made its decoder crash ({signal.Signals(-status).name}), with {self.limits.media_memory_mb} MB of memory "
                "(MEDIA_MEMORY_MB): it is damaged or needs more; convert it to H.264 in MP4"
            )
        if -status == signal.SIGXFSZ:
            raise LimitExceeded("The file gives more keyframes or sound than may be written; cut it up")
        raise WorkerLost(f"the process that decoded the file ended with status {status}")


class _Watch:
    """Watches a silent process."""

    def __init__(self, pid: int, limits: MediaLimits, wall_s: float, more_mb: int) -> None:
        self._process = psutil.Process(pid)
        self._limits = limits
        self._memory_mb = limits.media_memory_mb + more_mb
        self._wall_s = wall_s
        self._started_s = self._moved_s = time.monotonic()
        #: CPU seconds at the last check, and at its last message.
        self._spent_s = self._heard_s = 0.0

    def hear(self) -> None:
        """Note a message of the process."""
        self._heard_s = self._spent_s

    def look(self) -> None:
        """Raise LimitExceeded for too much CPU time or memory, StageTimeout when it stands still."""
        limits, now_s = self._limits, time.monotonic()
        try:
            times = self._process.cpu_times()
            resident = 0 if sys.platform == "linux" else self._process.memory_info().rss
        except psutil.Error:
            return  # it has just ended
        spent_s = times.user + times.system
        if spent_s > self._spent_s + 0.01:
            self._spent_s, self._moved_s = spent_s, now_s
        if resident > self._memory_mb * 1_000_000:
            raise no_memory(limits)
        if spent_s - self._heard_s > limits.media_cpu_base_s:
            raise LimitExceeded(
                f"Decoding one picture takes more than {limits.media_cpu_base_s:g} s of CPU time, the limit (MEDIA_CPU_BASE_S); "
                "scale the video down or re-encode it"
            )
        if now_s - self._started_s > self._wall_s:
            raise LimitExceeded(
                f"Decoding takes more than {self._wall_s:.0f} s, the limit; cut the file up or scale it down"
            )
        if now_s - self._moved_s > _STUCK_S:
            raise StageTimeout(f"decoding stood still for {_STUCK_S:.0f} s: the disk may not answer")


def _environment() -> dict[str, str]:
    """The environment of the process: without secrets, and with one thread per library."""
    found = {name: value for name in _VARIABLES if (value := process_environment(name)) is not None}
    paths = [str(_ROOT), *filter(None, (process_environment("PYTHONPATH") or "").split(os.pathsep))]
    return {
        **found,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # Arenas of threads are memory that is reserved and not used.
        "MALLOC_ARENA_MAX": "2",
    }
