"""``scenefleet search``: ask, and show the hits with why they were found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args
from uuid import UUID, uuid4

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli import screen
from cli.connection import connect
from cli.people import registry
from cli.pictures import check_picture
from shared.client import Client
from shared.contracts import SearchAnswer, SearchHit, SearchMode, SearchRetriever
from shared.errors import InvalidRequest, NotFound
from shared.settings import get_settings
from shared.storage import configured_storage, upload_key

#: Characters of a transcript shown around the first word found.
_SHOWN_CHARS = 220


def run(
    text: str | None,
    *,
    user: str | None,
    mode: str,
    like: str | None,
    image: Path | None,
    persons: Sequence[str],
    weights: Sequence[str],
    filters: Sequence[str],
    as_json: bool,
    **options: Any,
) -> None:
    """Search and show the hits, and how much could be looked at.

    ``persons``: ids or names. ``options``: further fields of ``SearchScenes``.
    """
    if mode not in get_args(SearchMode):
        raise InvalidRequest(f"--mode {mode} does not exist: use {', '.join(get_args(SearchMode))}")
    client, owner = connect(user)
    if like is not None:
        options["like_scene"] = find_scene(client, owner, like)
    with uploaded(owner, image) as key:
        answer = client.search(
            owner,
            text,
            mode=cast("SearchMode", mode),
            image_key=key,
            weights=read_weights(weights),
            filters=read_filters(filters),
            persons=[registry.find(client, owner, who).person_id for who in persons],
            **options,
        )
    screen.answer(answer, lambda: hit_table(answer) if answer.hits else "nothing found", as_json=as_json)
    if as_json:
        return
    for retriever, reason in answer.degraded.items():
        screen.tell(Text(f"without {retriever}: {reason}", style="yellow"))
    screen.tell(Text(coverage_line(answer), style="dim"))
    if answer.left_out:
        screen.tell(
            Text(
                f"left out: {answer.left_out} scenes that are not similar; --min-score 0 shows them",
                style="dim",
            )
        )
    if answer.truncated is not None:
        screen.tell(Text(f"there may be more: the pages end at {answer.truncated}", style="yellow"))
    if answer.next_cursor is not None:
        screen.tell(Text(f"more: --cursor {answer.next_cursor}", style="dim"))


def read_weights(given: Sequence[str]) -> dict[str, float]:
    """``["vision=0.5"]`` as retriever -> weight."""
    weights = {}
    for item in given:
        retriever, separator, value = item.partition("=")
        if not separator or retriever not in get_args(SearchRetriever):
            known = ", ".join(get_args(SearchRetriever))
            raise InvalidRequest(f"--weight {item!r} is no RETRIEVER=NUMBER: name one of {known}")
        try:
            weights[retriever] = float(value)
        except ValueError:
            raise InvalidRequest(f"--weight {item!r} has no number: write {retriever}=0.5") from None
    return weights


def read_filters(given: Sequence[str]) -> dict[str, Any]:
    """``["loudness=-30"]`` as filter -> value: JSON, or the text as it stands."""
    filters: dict[str, Any] = {}
    for item in given:
        name, separator, value = item.partition("=")
        if not separator:
            raise InvalidRequest(f"--filter {item!r} is no NAME=VALUE")
        try:
            filters[name] = json.loads(value)
        except ValueError:
            filters[name] = value
    return filters


def find_scene(client: Client, user: str, name: str) -> str:
    """The id of a scene named as ``VIDEO:NUMBER``, as in the table of hits, or by its id."""
    video, separator, number = name.rpartition(":")
    if separator and number.isdecimal() and len(number) <= 9:
        scenes = client.scenes(video, user, after_idx=int(number) - 1, limit=1).scenes
        if not scenes or scenes[0].idx != int(number):
            raise NotFound(f"video {video!r} has no scene {number}: see `scenefleet scenes {video}`")
        return scenes[0].scene_id
    try:
        return str(UUID(name))
    except ValueError:
        remedy = "write VIDEO:NUMBER, as in `scenefleet scenes`, or a scene's id"
        raise InvalidRequest(f"--like {name!r} is no scene: {remedy}") from None


@contextmanager
def uploaded(user: str, image: Path | None) -> Iterator[str | None]:
    """A picture of this machine under a key of the user's, while the block runs."""
    if image is None:
        yield None
        return
    kind = check_picture(image)
    storage = configured_storage(get_settings())
    key = upload_key(user, "queries", uuid4().hex + image.suffix.lower())
    storage.put_file("uploads", key, image, kind)
    try:
        yield key
    finally:
        storage.delete("uploads", key)


def hit_table(answer: SearchAnswer) -> Table:
    """Hits as a table, best first: the words found in bold, and below them what each retriever gave."""
    table = screen.make_table(">score", "~video", ">#", "time", "~words")
    for hit in answer.hits:
        why = retrievers_line(hit)
        time = f"{screen.clock(hit.start_s)} - {screen.clock(hit.end_s)}"
        found = Group(words(hit), Text(why, style="dim")) if why else words(hit)
        table.add_row(f"{hit.score:.2f}", hit.video_id, str(hit.idx), time, found)
    return table


def words(hit: SearchHit) -> Text:
    """The part of the transcript that holds the first word found, with the words found in bold."""
    spans = hit.highlights.words
    start = 0
    if len(hit.transcript) > _SHOWN_CHARS and spans and spans[0].end > _SHOWN_CHARS:
        start = max(0, spans[0].start - _SHOWN_CHARS // 4)
    end = min(len(hit.transcript), start + _SHOWN_CHARS)
    shown = Text("..." if start else "")
    place = start
    for span in spans:
        if span.start >= place and span.end <= end:
            shown.append(hit.transcript[place : span.start])
            shown.append(hit.transcript[span.start : span.end], style="bold")
            place = span.end
    shown.append(hit.transcript[place:end])
    if end < len(hit.transcript):
        shown.append("...")
    return shown


def retrievers_line(hit: SearchHit) -> str:
    """What each retriever gave, when there were several; who of those asked for is there; what was read on screen."""
    parts = []
    if len(hit.similarities) > 1:
        parts += [f"{retriever} {value:.2f}" for retriever, value in hit.similarities.items() if value > 0]
    if hit.rerank_score is not None:
        parts.append(f"reranked {hit.rerank_score:.2f}")
    parts += [f"{person.name} {person.confidence:.0%}" for person in hit.highlights.people]
    parts += [f"on screen: {line.text}" for line in hit.highlights.screen]
    return ", ".join(parts)


def coverage_line(answer: SearchAnswer) -> str:
    """What was looked at, in one sentence: "nothing found" is not "not looked at yet"."""
    seen = answer.coverage
    line = f"looked at {seen.scenes} scenes, {seen.with_words} with words"
    if seen.with_vectors is not None:
        line += f", {seen.with_vectors} with a vector of {answer.model}"
    for retriever in seen.retrievers:
        if retriever.retriever == "vision" and retriever.used:
            line += f", {retriever.scenes} with pictures seen by {retriever.model}"
    if seen.videos_in_work:
        line += f"; {seen.videos_in_work} videos are still in work"
    return line
