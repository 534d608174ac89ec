"""Two models asked the same queries: what ``scenefleet models switch`` shows before it activates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Column
from rich.text import Text

from cli import screen
from shared.client import Client
from shared.contracts import MAX_QUERY_CHARS, ModelSamples, SearchAnswer, SearchedKind, SwitchView
from shared.errors import InvalidRequest, Retryable

#: How many hits of each answer are compared.
_AT = 10
_QUERY_WORDS = 8
_MAX_QUERIES = 1_000
_MAX_FILE_BYTES = 2**20


@dataclass
class Compared:
    """What some queries find by the old model and by the new one."""

    #: Mean share of the best hits that both find, 0..1; None: nothing could be compared.
    overlap: float | None = None
    #: Median and 95th percentile of one search, milliseconds, embedding the query included.
    old_p50_ms: float | None = None
    old_p95_ms: float | None = None
    new_p50_ms: float | None = None
    new_p95_ms: float | None = None
    queries: list[dict[str, Any]] = field(default_factory=list)


def compare(
    client: Client, kind: SearchedKind, switch: SwitchView, user: str, queries: Sequence[str]
) -> Compared:
    """Ask each query of both models, in turn; the first one twice, to warm up."""
    compared = Compared()
    times: dict[str, list[float]] = {"old": [], "new": []}
    models = {"old": switch.from_model, "new": switch.to_model}
    overlaps = []
    for query in queries[:1]:
        for model in models.values():
            _search(client, kind, user, query, model)
    for query in queries:
        answers: dict[str, SearchAnswer] = {}
        for side, model in models.items():
            began = time.monotonic()
            answers[side] = _search(client, kind, user, query, model)
            times[side].append((time.monotonic() - began) * 1000)
        if answers["old"].degraded or answers["new"].degraded:
            reason = next(iter({**answers["old"].degraded, **answers["new"].degraded}.values()))
            raise Retryable(f"query {query[:40]!r} can't be compared ({reason}): try again, with --hold")
        old, new = ([hit.scene_id for hit in answers[side].hits] for side in ("old", "new"))
        most = max(len(old), len(new))
        overlap = len(set(old) & set(new)) / most if most else 1.0
        overlaps.append(overlap)
        compared.queries.append(
            {
                "query": query,
                "overlap": round(overlap, 4),
                "old_first": _place(answers["old"]),
                "new_first": _place(answers["new"]),
                "left": len(set(old) - set(new)),
                "entered": len(set(new) - set(old)),
            }
        )
    if overlaps:
        compared.overlap = round(statistics.fmean(overlaps), 4)
        for side, taken in times.items():
            taken.sort()
            setattr(compared, f"{side}_p50_ms", round(statistics.median(taken), 1))
            setattr(compared, f"{side}_p95_ms", round(taken[int(0.95 * (len(taken) - 1))], 1))
    return compared


def _search(client: Client, kind: SearchedKind, user: str, query: str, model: str) -> SearchAnswer:
    other = "vision" if kind == "text" else "text"
    named: dict[str, Any] = {f"{kind}_model": model}
    return client.search(user, query, mode="semantic", limit=_AT, weights={other: 0.0}, **named)


def _place(answer: SearchAnswer) -> str | None:
    return f"{answer.hits[0].video_id}:{answer.hits[0].idx}" if answer.hits else None


def read_queries(path: Path) -> list[str]:
    """The queries of a file, one a line; blank lines and those that begin with # are left out.

    Raises:
        InvalidRequest: no such file, too large, not text, or it holds no query.
    """
    if not path.is_file():
        raise InvalidRequest(f"--queries {str(path)!r} is no file: name one with a query on each line")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise InvalidRequest(
            f"--queries {str(path)!r} has more than {_MAX_FILE_BYTES:,} bytes: keep the best of it"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InvalidRequest(f"--queries {str(path)!r} is not UTF-8 text: convert it") from None
    queries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not queries or len(queries) > _MAX_QUERIES:
        raise InvalidRequest(
            f"--queries {str(path)!r} has {len(queries)} queries: give 1 to {_MAX_QUERIES:,}"
        )
    for query in queries:
        if len(query) > MAX_QUERY_CHARS:
            raise InvalidRequest(
                f"--queries {str(path)!r} has a query of {len(query)} characters ({query[:40]!r}...), more than"
                f" {MAX_QUERY_CHARS}: make it shorter"
            )
    return queries


def as_queries(samples: ModelSamples) -> list[str]:
    """Without queries of their own: the beginnings of what is said in some scenes."""
    return [" ".join(said.split()[:_QUERY_WORDS])[:MAX_QUERY_CHARS] for said in samples.texts]


def show(compared: Compared, switch: SwitchView, user: str) -> None:
    console = screen.make_console()
    if compared.overlap is None:
        console.print(
            f"not compared: user {user} has no scenes with words; name one with --user, or give --queries",
            soft_wrap=True,
        )
        return
    table = screen.make_table(
        Column("query", overflow="fold", ratio=2),
        Column("same", justify="right", no_wrap=True, min_width=4),
        Column("first before", overflow="fold", ratio=1),
        Column("first after", overflow="fold", ratio=1),
    )
    for one in compared.queries:
        table.add_row(
            Text(one["query"]), f"{one['overlap']:.0%}", one["old_first"] or "-", one["new_first"] or "-"
        )
    console.print(table)
    console.print(
        f"{compared.overlap:.0%} of the first {_AT} hits are the same; {switch.from_model} {compared.old_p50_ms:.0f} ms (p95"
        f" {compared.old_p95_ms:.0f}), {switch.to_model} {compared.new_p50_ms:.0f} ms (p95 {compared.new_p95_ms:.0f})",
        soft_wrap=True,
    )
