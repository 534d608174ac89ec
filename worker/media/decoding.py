"""The process that decodes one file: ``python -m worker.media.decoding``, started by ``sandbox``.

Reads one JSON line from stdin, writes lines of progress to stdout and the answer to a file in the job's folder. Starts in
a fifth of a second: it must import neither Celery, SQLAlchemy, pydantic nor an ML engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.errors import BadMedia

from .limits import MediaLimits, no_memory
from .results import SpansDiffer

#: Files in the job's folder: the answer, and the samples of an excerpt.
RESULT_NAME, SAMPLES_NAME = "decoding.json", "samples.s16"

#: Files of a span in the folder of the join, by its number: what was found, and thumbs.
SPAN_NAMES = ("{}.json", "{}.yuv")

#: Memory reserved for reporting an error when the limit is reached, bytes.
_LAST_BYTES = 64 * 2**20
_PR_SET_PDEATHSIG = 1
#: What the network that judges cuts takes, in addition to what the file may take, MB.
_NETWORK_MB = 320
#: Niceness of a process that gives way to all others.
_LOWEST = 19


def main() -> int:
    """Do what the first line of stdin asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends this process
    request = json.loads(sys.stdin.buffer.readline())
    end_with(request["parent"])
    limits = MediaLimits(**request["limits"])
    limit_memory(limits, _largest_file(request["kind"], limits), more_memory_mb(request["arguments"]))
    try:
        result = decode(request, limits)
    except (MemoryError, BadMedia) as error:
        _lift_memory_limit()
        refusal = error if isinstance(error, BadMedia) else no_memory(limits)
        tell(error=refusal.code, message=str(refusal))
    except SpansDiffer as error:
        tell(error="SpansDiffer", message=str(error))
    except OSError as error:
        tell(error="OSError", message=error.strerror or str(error), errno=error.errno)
    except Exception as error:  # noqa: BLE001 - a mistake of ours is for the parent to report
        traceback.print_exc()
        tell(error="bug", message=f"{type(error).__name__}: {error}")
    else:
        (Path(request["folder"]) / RESULT_NAME).write_text(json.dumps(result, default=str))
    return 0


def decode(request: dict[str, Any], limits: MediaLimits) -> dict[str, Any]:
    """Return what the function asked for found, as JSON; raises as it does."""
    import cv2

    # The pictures it gets are small, and its threads would each take memory.
    cv2.setNumThreads(1)
    path, folder = Path(request["path"]), Path(request["folder"])
    arguments = {"limits": limits, **request["arguments"]}
    if arguments.get("weights"):
        arguments["weights"] = Path(arguments["weights"])
    match request["kind"]:
        case "split":
            from .spans import plan_spans
            from .split import split

            span_s = arguments.pop("span_s")
            # Of a group of pictures fast mode decodes as little as it can.
            spans = plan_spans(path, limits, span_s) if span_s and arguments["mode"] != "fast" else ()
            if spans:
                return {"spans": [asdict(span) for span in spans]}
            return asdict(split(path, folder, on_progress=_tell_progress, **arguments))
        case "split_span":
            from .results import Span
            from .spans import store
            from .split import split_span

            arguments["span"] = Span(**arguments["span"])
            return store(split_span(path, folder, on_progress=_tell_progress, **arguments), folder)
        case "join_spans":
            from .spans import join_spans, load

            found = [
                load(number, *(folder / name.format(number) for name in SPAN_NAMES))
                for number in range(arguments.pop("count"))
            ]
            return asdict(join_spans(found, folder, **arguments))
        case "extract_audio":
            from .sound import extract_audio

            audio, windows = extract_audio(path, folder, on_progress=_tell_progress, **arguments)
            return {"audio": audio, "windows": windows}
        case "make_rendition":
            from .rendition import make_rendition

            os.nice(_LOWEST)
            return asdict(make_rendition(path, folder, on_progress=_tell_progress, **arguments))
        case "read_excerpt":
            from .sound import read_excerpt

            read_excerpt(path, folder, **arguments).tofile(folder / SAMPLES_NAME)
            return {}
    raise ValueError(f"unknown kind {request['kind']!r}")


def tell(**fields: Any) -> None:
    """Write one line to the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _tell_progress(fraction: float) -> None:
    tell(progress=fraction)


def end_with(parent: int) -> None:
    """End this process when the process ``parent`` ends: at once on Linux, else when stdin closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The kernel's killer of processes shall take this one and not the node.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(1)


def _largest_file(kind: str, limits: MediaLimits) -> int:
    """Return the size of the largest file that the process may write, bytes."""
    # The muxer's index is added to the content.
    if kind == "make_rendition":
        return limits.max_video_bytes + limits.max_video_bytes // 10 + 2**26
    return int(limits.max_video_duration_s * 32_000) + 2**24


def more_memory_mb(arguments: Mapping[str, Any]) -> int:
    """What a request with these arguments takes in addition to what the file may take, MB."""
    return _NETWORK_MB if arguments.get("weights") else 0


def limit_memory(limits: MediaLimits, largest_bytes: int, more_mb: int = 0) -> None:
    """Set the kernel's limit on what this process may allocate; no core dumps, no endless files.

    RLIMIT_DATA counts the heap and private mappings, since Linux 4.7, and neither libraries nor address space that is
    only reserved, as RLIMIT_AS would. Other systems ignore it: there the parent looks.
    """
    size = (limits.media_memory_mb + more_mb) * 1_000_000
    for kind, soft, hard in (
        (resource.RLIMIT_DATA, size, size + _LAST_BYTES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, largest_bytes, largest_bytes),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft, hard))


def _lift_memory_limit() -> None:
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
