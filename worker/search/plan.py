"""Plans a search: the retrievers it uses, why others are not used, and the tasks to send to the models' queues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from db.search import read_filters
from shared import graph, routing
from shared.contracts import SearchRetriever, SearchScenes
from shared.errors import Conflict, InvalidRequest
from shared.settings import Settings
from worker.models.spec import Kind, ModelSpec
from worker.runtime import Runtime

RETRIEVERS: tuple[SearchRetriever, ...] = get_args(SearchRetriever)
#: Providers of kind text that also produce lexical weights.
_WEIGHING = ("bge-m3",)
#: Retriever -> the stage that writes its rows.
STAGES = {retriever: stage.name for stage in graph.PIPELINE for retriever in stage.retrievers}
OF_MODE: dict[str, tuple[SearchRetriever, ...]] = {
    "keyword": ("keyword",),
    "semantic": ("text", "vision"),
    "hybrid": ("text", "vision", "lexical", "keyword", "screen"),
}


@dataclass(frozen=True)
class Call:
    """One task on a queue of a model."""

    task: str
    payload: dict[str, Any]
    #: The model whose vector of a text it asks for; None: it asks for something else.
    spec: ModelSpec | None = None


@dataclass
class Plan:
    """What a search needs before it can be answered."""

    #: Queue (text, vision) -> the task to send.
    calls: dict[str, Call] = field(default_factory=dict)
    #: Retriever of the mode -> why this search does not use it.
    refused: dict[str, str] = field(default_factory=dict)
    #: Retriever of this search -> why it has no answer.
    missing: dict[str, str] = field(default_factory=dict)
    #: Retrievers that are wanted and possible.
    retrievers: list[SearchRetriever] = field(default_factory=list)
    #: Version of the user's rows that the answer was read from (``db.search.read_version``).
    version: str = ""


def check(request: SearchScenes, settings: Settings) -> None:
    """Refuse requests that are valid by the contract but make no sense.

    Raises:
        InvalidRequest, Conflict.
    """
    if not (asks(request) or _filters(request)):
        raise InvalidRequest("query is missing: send it, or like_scene, image_key, persons or a filter")
    if request.like_scene and request.image_key:
        raise InvalidRequest("like_scene and image_key are both given: send one of them")
    if request.mode == "keyword" and (request.like_scene or request.image_key):
        name = "like_scene" if request.like_scene else "image_key"
        raise InvalidRequest(
            f"{name} is given in mode keyword, which knows words only: use hybrid or semantic"
        )
    if request.limit is not None and request.limit > settings.search_max_results:
        raise InvalidRequest(
            f"limit={request.limit} is more than {settings.search_max_results}: ask for fewer"
        )
    if request.from_s is not None and request.to_s is not None and request.from_s >= request.to_s:
        raise InvalidRequest(f"from_s={request.from_s:g} is not before to_s={request.to_s:g}: swap them")
    if request.rerank is not None and request.query is None:
        raise InvalidRequest(f"rerank={request.rerank} needs a query to read the hits by: send it")
    if request.rerank is not None and request.cursor is not None:
        raise InvalidRequest(
            "cursor and rerank are both given: only the first hits are reranked, send one of them"
        )
    read_filters(request.filters)
    if request.persons and not settings.feature_face:
        raise Conflict("persons can't be searched: FEATURE_FACE is off; search without persons")


def asks(request: SearchScenes) -> bool:
    """Whether a search compares scenes with something; otherwise it lists those that pass its filters."""
    return request.query is not None or bool(request.like_scene or request.image_key or request.persons)


def _filters(request: SearchScenes) -> bool:
    """Whether a search has a filter besides people."""
    times = (request.from_s, request.to_s, request.indexed_from, request.indexed_to)
    named = request.video_id or request.video_ids or request.languages or request.filters
    return bool(named) or any(time is not None for time in times)


def plan(request: SearchScenes, runtime: Runtime, kept: Mapping[str, Any] | None = None) -> Plan:
    """Choose the retrievers of a search, and the tasks to send.

    ``kept``: the answers of the queues for an earlier page: no task is sent again.
    """
    made = Plan()
    weights = weigh(request, runtime.settings)
    models = models_of(request, runtime)
    heard = (kept or {}).get("text", {}).get("ok", {}).get("model")
    if heard in runtime.catalog.names():
        # Another one may be active since: a search keeps the retrievers it began with, from page to page.
        models["text"] = runtime.catalog.get(heard)
    for retriever in OF_MODE[request.mode]:
        reason = _no_use(retriever, request, runtime, weights[retriever], models.get("text"))
        if reason is not None:
            made.refused[retriever] = reason
        else:
            made.retrievers.append(retriever)
    if request.persons:
        made.retrievers.append("people")
    calls = {}
    if {"text", "lexical"} & set(made.retrievers) and request.query is not None:
        payload = {
            "texts": [request.query],
            "lexical": "lexical" in made.retrievers,
            "model": models["text"].name,
        }
        calls["text"] = Call(routing.TEXT_EMBED, payload, models["text"])
    if "vision" in made.retrievers and request.image_key is not None:
        picture = {"user_id": request.user_id, "storage_keys": [request.image_key]}
        calls["vision"] = Call(routing.VISION_EMBED_IMAGES, {**picture, "model": models["vision"].name})
    elif "vision" in made.retrievers and request.query is not None and request.like_scene is None:
        payload = {"texts": [request.query], "model": models["vision"].name}
        calls["vision"] = Call(routing.VISION_EMBED_TEXTS, payload, models["vision"])
    if kept is None:
        made.calls = calls
    return made


def models_of(request: SearchScenes, runtime: Runtime) -> dict[Kind, ModelSpec]:
    """The model of each kind that a search uses: the active one, unless the request names another.

    Raises:
        InvalidRequest: the named model does not exist or has another kind.
    """
    models = dict(runtime.active.models())
    named: dict[Kind, str | None] = {"text": request.text_model, "vision": request.vision_model}
    for kind, name in named.items():
        if name is None:
            continue
        known = {spec.name: spec for spec in runtime.catalog.specs if spec.kind == kind}
        if name not in known:
            raise InvalidRequest(
                f"{kind}_model={name!r} is no {kind} model of this fleet: name one of {', '.join(known)}, or leave it out"
            )
        models[kind] = known[name]
    return models


def miss(made: Plan, queue: str, reason: str) -> None:
    """Record why the retrievers of a queue have no answer."""
    for retriever in ("text", "lexical") if queue == "text" else ("vision",):
        if retriever in made.retrievers:
            made.missing[retriever] = reason


def _no_use(
    retriever: SearchRetriever,
    request: SearchScenes,
    runtime: Runtime,
    weight: float,
    text_model: ModelSpec | None,
) -> str | None:
    """Why this search does not use a retriever of its mode; None if it does."""
    skipped = runtime.policy.skips.get(STAGES.get(retriever, ""))
    if skipped is not None:
        return skipped
    if request.query is None and (
        retriever in ("keyword", "lexical", "screen") or (retriever == "text" and request.like_scene is None)
    ):
        return "no words are searched for"
    if retriever == "vision" and not (request.query or request.like_scene or request.image_key):
        return "nothing to be seen is searched for"
    if retriever == "lexical" and (text_model is None or text_model.provider not in _WEIGHING):
        name = "the text model" if text_model is None else text_model.name
        return f"{name} gives no lexical weights"
    return "its weight is 0" if weight == 0 else None


def weigh(request: SearchScenes, settings: Settings) -> dict[str, float]:
    """Retriever -> its weight in this search; mode keyword scores by rank only."""
    weights: dict[str, float] = {name: getattr(settings, f"search_{name}_weight") for name in RETRIEVERS}
    weights |= {retriever: float(value) for retriever, value in request.weights if value is not None}
    if request.mode == "keyword":
        weights["keyword"] = 1.0
    return weights
