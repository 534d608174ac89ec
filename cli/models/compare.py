"""Two models asked the same queries: what ``scenefleet models switch`` shows before it activates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
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


def compare(
    client: Client, kind: SearchedKind, switch: SwitchView, user: str, queries: Sequence[str]
) -> dict[str, Any]:
    """Ask each query of both models, in turn; the first one twice, to warm up.

    Returns:
        ``overlap``, the mean share of the best hits that both find, 0..1 (None: nothing could be compared); the median and
        the 95th percentile of one search by each model in milliseconds, embedding the query included; ``queries``.
    """
    models = {"old": switch.from_model, "new": switch.to_model}
    times: dict[str, list[float]] = {"old": [], "new": []}
    overlaps, compared = [], []
    for query in queries[:1]:
        for model in models.values():
            _search(client, kind, user, query, model)
    for query in queries:
        answers: dict[str, SearchAnswer] = {}
        for side, model in models.items():
            began = time.monotonic()
            answers[side] = _search(client, kind, user, query, model)
            times[side].append((time.monotonic() - began) * 1000)
        if degraded := {**answers["old"].degraded, **answers["new"].degraded}:
            reason = next(iter(degraded.values()))
            raise Retryable(f"query {query[:40]!r} can't be compared ({reason}): try again, with --hold")
        old, new = ({hit.scene_id for hit in answers[side].hits} for side in ("old", "new"))
        overlaps.append(len(old & new) / max(len(old), len(new)) if old or new else 1.0)
        compared.append(
            {
                "query": query,
                "overlap": round(overlaps[-1], 4),
                "old_first": _place(answers["old"]),
                "new_first": _place(answers["new"]),
                "left": len(old - new),
                "entered": len(new - old),
            }
        )
    found: dict[str, Any] = {"overlap": round(statistics.fmean(overlaps), 4) if overlaps else None}
    for side, taken in times.items():
        taken.sort()
        found[f"{side}_p50_ms"] = round(statistics.median(taken), 1) if taken else None
        found[f"{side}_p95_ms"] = round(taken[int(0.95 * (len(taken) - 1))], 1) if taken else None
    return {**found, "queries": compared}


def _search(client: Client, kind: SearchedKind, user: str, query: str, model: str) -> SearchAnswer:
    other = "vision" if kind == "text" else "text"
    named: dict[str, Any] = {f"{kind}_model": model}
    return client.search(
        user, query, mode="semantic", limit=_AT, weights={other: 0.0}, min_score=0.0, **named
    )


def _place(answer: SearchAnswer) -> str | None:
    return f"{answer.hits[0].video_id}:{answer.hits[0].idx}" if answer.hits else None


def read_queries(path: Path) -> list[str]:
    """The queries of a file, one a line; blank lines and those that begin with # are left out.

    Raises:
        InvalidRequest: no such file, too large, not text, or it holds no query.
    """

    def refusal(reason: str) -> InvalidRequest:
        return InvalidRequest(f"--queries {str(path)!r} {reason}")

    if not path.is_file():
        raise refusal("is no file: name one with a query on each line")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise refusal(f"has more than {_MAX_FILE_BYTES:,} bytes: keep the best of it")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise refusal("is not UTF-8 text: convert it") from None
    queries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not queries or len(queries) > _MAX_QUERIES:
        raise refusal(f"has {len(queries)} queries: give 1 to {_MAX_QUERIES:,}")
    if long := next((query for query in queries if len(query) > MAX_QUERY_CHARS), None):
        size = f"a query of {len(long)} characters ({long[:40]!r}...)"
        raise refusal(f"has {size}, more than {MAX_QUERY_CHARS}: make it shorter")
    return queries


def as_queries(samples: ModelSamples) -> list[str]:
    """Without queries of their own: the beginnings of what is said in some scenes."""
    return [" ".join(said.split()[:_QUERY_WORDS])[:MAX_QUERY_CHARS] for said in samples.texts]


def show(compared: dict[str, Any], switch: SwitchView, user: str) -> None:
    console = screen.make_console()
    if compared["overlap"] is None:
        nothing = (
            f"not compared: user {user} has no scenes with words; name one with --user, or give --queries"
        )
        console.print(nothing, soft_wrap=True)
        return
    table = screen.make_table(
        Column("query", overflow="fold", ratio=2),
        Column("same", justify="right", no_wrap=True, min_width=4),
        Column("first before", overflow="fold", ratio=1),
        Column("first after", overflow="fold", ratio=1),
    )
    for one in compared["queries"]:
        firsts = (one["old_first"] or "-", one["new_first"] or "-")
        table.add_row(Text(one["query"]), f"{one['overlap']:.0%}", *firsts)
    console.print(table)
    old, new = (
        f"{model} {compared[f'{side}_p50_ms']:.0f} ms (p95 {compared[f'{side}_p95_ms']:.0f})"
        for side, model in (("old", switch.from_model), ("new", switch.to_model))
    )
    same = f"{compared['overlap']:.0%} of the first {_AT} hits are the same"
    console.print(f"{same}; {old}, {new}", soft_wrap=True)
