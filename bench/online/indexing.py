"""Embeddings while videos are indexed: a job of the text node may come first, no second one."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from bench.models import make_texts
from bench.online.report import Figure, percentile
from shared.client import Client
from tests.support.fleet import ENDED, Fleet

_USER = "local"
_PAUSE_S = 0.1
_WITHIN_S = 3600.0
#: Of a cached embedding, ms.
_CACHED_MS = 5.0


def measure(fleet: Fleet, video: Path, videos: int) -> dict[str, Any]:
    """Index copies of a video; one caller asks for a cached text and a new one in turn until all of them are indexed."""
    names = [f"during-{number}" for number in range(videos)]
    texts = make_texts(512)
    new_s: list[float] = []
    cached_s: list[float] = []
    batch_s: list[float] = []
    with Client(fleet.redis_url, timeout_s=60) as client:
        client.embed_texts(["the cached one"])
        for name in names:
            fleet.process(video, name, _USER)
        deadline_s = time.monotonic() + _WITHIN_S
        while not _ended(fleet, names) and time.monotonic() < deadline_s:
            for _ in range(5):
                began_s = time.perf_counter()
                client.embed_texts(["the cached one"])
                cached_s.append(time.perf_counter() - began_s)
                asked = f"{len(new_s)} {texts[len(new_s) % len(texts)]}"
                began_s = time.perf_counter()
                found = client.embed_texts([asked])
                new_s.append(time.perf_counter() - began_s)
                batch_s.append(found.timings.run_s if found.timings else 0.0)
                time.sleep(_PAUSE_S)
    states = [
        row["state"] for row in fleet.rows("SELECT state FROM videos WHERE external_id = ANY(%s)", names)
    ]
    jobs = fleet.rows(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 AS seconds FROM jobs"
        " WHERE stage = 'text' AND state = 'done' AND started_at IS NOT NULL AND finished_at IS NOT NULL"
    )
    return {
        "videos": videos,
        "indexed": states.count("indexed"),
        "requests": len(new_s),
        "new_ms": {"p50": 1000 * statistics.median(new_s), "p95": 1000 * percentile(new_s, 0.95)},
        "cached_ms": {"p50": 1000 * statistics.median(cached_s), "p95": 1000 * percentile(cached_s, 0.95)},
        "longest_job_ms": 1000 * max((row["seconds"] for row in jobs), default=0.0),
        "longest_batch_ms": 1000 * max(batch_s),
    }


def _ended(fleet: Fleet, names: list[str]) -> bool:
    rows = fleet.rows("SELECT state FROM videos WHERE external_id = ANY(%s)", names)
    return all(row["state"] in ENDED for row in rows)


def judge(found: dict[str, Any]) -> list[Figure]:
    limit_ms = found["longest_job_ms"] + found["longest_batch_ms"]
    return [
        Figure(f"of {found['videos']} videos, indexed meanwhile", found["indexed"], least=found["videos"]),
        Figure("new text: p95, ms; at most the longest job and the longest batch", found["new_ms"]["p95"], most=limit_ms),
        Figure("cached text: p95, ms", found["cached_ms"]["p95"], most=_CACHED_MS),
    ]  # fmt: skip
