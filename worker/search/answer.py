"""Answers a search from the answers of the queues and one read-only snapshot of the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import numpy as np
from sqlalchemy.orm import Session

from db import search
from db.engine import reading_as
from db.ids import find_people, find_videos
from db.vectors import ModelRow, known_model
from shared import errors
from shared.contracts import (
    Coverage,
    RetrieverCoverage,
    SearchAnswer,
    SearchScenes,
    TextVectors,
    parse,
)
from shared.errors import Conflict, InvalidRequest, NotFound, Outage
from worker.runtime import Runtime
from worker.search.cursor import read_cursor, write_cursor
from worker.search.plan import OF_MODE, RETRIEVERS, STAGES, Plan, asks, miss, models_of, weigh

#: A scope of at most this many times SEARCH_CANDIDATES scenes is compared as a whole.
_WHOLE = 5


def answer(
    request: SearchScenes, runtime: Runtime, made: Plan, queues: Mapping[str, Mapping[str, Any]]
) -> SearchAnswer:
    """Search with the answers of the queues: {"ok": the answer} or {"error": why there is none}.

    Raises:
        InvalidRequest, NotFound. Conflict: no retriever is possible here. Outage: none is possible now.
    """
    for queue, said in queues.items():
        if "error" in said:
            if queue == "vision" and request.image_key is not None:
                _blame_picture(said)
            miss(made, queue, str(said["error"]))
    # One snapshot: a run that is published meanwhile must not remove what an earlier statement has found.
    with reading_as(request.user_id, snapshot=True) as session:
        return _Answering(session, request, runtime, made, queues).answer()


def _blame_picture(said: Mapping[str, Any]) -> None:
    """Raise the vision node's error if the caller's picture is invalid: other retrievers don't make up for that."""
    kind = getattr(errors, str(said.get("class")), None)
    if isinstance(kind, type) and issubclass(
        kind, (InvalidRequest, errors.InvalidKey, errors.ObjectMissing, errors.BadMedia)
    ):
        raise kind(str(said["error"]))


class _Answering:
    """The state of one answer."""

    def __init__(
        self,
        session: Session,
        request: SearchScenes,
        runtime: Runtime,
        made: Plan,
        queues: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.session, self.request, self.runtime = session, request, runtime
        self.made, self.queues = made, queues
        self.settings = runtime.settings
        self.scope = scope_of(session, request)
        self.weights = weigh(request, self.settings)
        #: Retrievers that are wanted, possible and answered.
        self.wanted = set(made.retrievers) - set(made.missing)
        self.models: dict[str, ModelRow] = {}
        self.names: dict[str, str] = {}
        self.words: tuple[search.WordsQuery, ...] = ()
        self.covered: search.Covered | None = None

    def answer(self) -> SearchAnswer:
        request, settings = self.request, self.settings
        self.made.version = search.read_version(self.session, request.user_id)
        retrievers = self._retrievers()
        if not retrievers and asks(request):
            self._give_up()
        limit = request.limit or settings.search_default_results
        found = search.find(
            self.session,
            self.scope,
            retrievers,
            self.weights,
            self._tuning(),
            limit=max(limit, request.rerank or 0),
            after=None if request.cursor is None else read_cursor(request),
            min_score=request.min_score,
        )
        hits = search.describe(self.session, self.scope, found.hits, self.words, self._link)
        more = found.more and request.rerank is None
        return SearchAnswer(
            query=request.query,
            mode=request.mode,
            model=self.names.get("text"),
            hits=tuple(hits),
            coverage=self._coverage({retriever.name for retriever in retrievers}),
            degraded=self.made.missing,
            next_cursor=write_cursor(request, found.hits[-1]) if more else None,
            left_out=found.left_out,
            truncated=f"SEARCH_MAX_DEPTH={settings.search_max_depth}" if found.truncated else None,
        )

    def _tuning(self) -> search.Tuning:
        settings, scenes = self.settings, self._count().scenes
        candidates = max(settings.search_candidates, settings.search_max_results)
        if scenes <= _WHOLE * candidates:
            # Few scenes are compared at once, in one order.
            candidates = max(candidates, scenes + 1)
        return search.Tuning(
            exact_rows=settings.search_exact_rows,
            ef_search=settings.search_ef,
            candidates=candidates,
            depth=settings.search_max_depth,
            cut=settings.search_cutoff and self.request.min_score is None,
        )

    def _count(self) -> search.Covered:
        """Count the scenes of the scope, by the models that the retrievers use."""
        if self.covered is None:
            self.covered = search.cover(self.session, self.scope, self.models, self.made.version)
        return self.covered

    def _retrievers(self) -> list[Any]:
        """The retrievers that have a query. Why others have none is recorded in the plan."""
        request = self.request
        self._find_models()
        retrievers: list[Any] = []
        if request.like_scene is not None:
            retrievers += self._like(request.like_scene)
        for queue in ("text", "vision"):
            said = self.queues.get(queue, {}).get("ok")
            if said is not None and queue in {STAGES.get(retriever) for retriever in self.wanted}:
                retrievers += self._embedded(queue, said)
        if request.query is not None and self.wanted & {"keyword", "screen"}:
            retrievers += self._words(request.query)
        if "people" in self.wanted:
            asked_alone = not (request.query or request.like_scene or request.image_key)
            proposes = asked_alone or request.mode != "keyword"
            retrievers.append(search.People(self.scope.persons, proposes))
        return sorted(retrievers, key=lambda retriever: RETRIEVERS.index(retriever.name))

    def _find_models(self) -> None:
        """Note the models whose rows the retrievers search: the active ones, until a queue names the one it has used."""
        specs = models_of(self.request, self.runtime)
        for retriever in {"text", "lexical", "vision"}.intersection(self.made.retrievers):
            spec = specs.get("vision" if retriever == "vision" else "text")
            if spec is not None:
                self.names[retriever] = spec.name
                if (row := known_model(self.session, spec.name, spec.revision)) is not None:
                    self.models[retriever] = row

    def _like(self, scene: UUID) -> list[Any]:
        models = {name: model for name, model in self.models.items() if name in ("text", "vision")}
        found = search.exemplar(self.session, self.request.user_id, scene, models)
        if found is None:
            raise NotFound(f"no scene '{scene}': check the id")
        retrievers: list[Any] = []
        for retriever in ("text", "vision"):
            if retriever not in self.wanted or (retriever == "text" and self.request.query is not None):
                continue
            if retriever in found:
                vector = found[retriever]
                retrievers.append(search.Vector(cast(Any, retriever), self.models[retriever], vector))
            else:
                self.made.refused[retriever] = f"the scene has no {retriever} vector"
        return retrievers

    def _embedded(self, queue: str, said: Any) -> list[Any]:
        """The retrievers that use the answer of a queue."""
        query = parse(TextVectors, said)
        model = known_model(self.session, query.model, query.revision)
        names = [
            name for name in ("text", "lexical", "vision") if name in self.wanted and STAGES[name] == queue
        ]
        for retriever in names:
            self.names[retriever] = query.model
            self.models.pop(retriever, None)
            if model is not None:
                self.models[retriever] = model
        if model is None:
            self.made.refused |= dict.fromkeys(names, f"nothing is indexed by {query.model} yet")
            return []
        if len(query.vectors) != 1 or len(query.vectors[0] or ()) != model.dim:
            shape = [len(vector or ()) for vector in query.vectors]
            raise InvalidRequest(f"vectors={shape} is not acceptable: send one of {model.dim} numbers")
        retrievers: list[Any] = []
        if queue in names:
            vector = np.asarray(query.vectors[0], np.float32)
            # Pictures are more similar to each other than to words.
            cutoff = None if queue == "vision" and self.request.image_key else self._cutoff(query)
            retrievers.append(search.Vector(cast(Any, queue), model, vector, cutoff=cutoff))
        if "lexical" in names and query.lexical:
            weights = {int(token): weight for token, weight in (query.lexical[0] or {}).items()}
            if weights:
                retrievers.append(search.Lexical(model, weights))
            else:
                self.made.refused["lexical"] = "the query has no words that weigh anything"
        return retrievers

    def _cutoff(self, said: TextVectors) -> float | None:
        """The least similarity of what the model of a vector finds; None: unknown."""
        spec = next((one for one in self.runtime.catalog.specs if one.name == said.model), None)
        return None if spec is None else spec.cutoff

    def _words(self, query: str) -> list[Any]:
        names = [name for name in ("keyword", "screen") if name in self.wanted]
        try:
            self.words = search.read_words(self.session, query, self._count().languages)
        except InvalidRequest as error:
            if self.request.mode == "keyword":
                raise
            self.made.refused |= dict.fromkeys(names, str(error))
            return []
        if self.request.mode == "keyword":
            # The score is Postgres's own rank/(rank+1).
            return [search.Words("keyword", self.words, half=1.0)]
        return [search.Words(cast(Any, retriever), self.words) for retriever in names]

    def _give_up(self) -> None:
        """Raise why no retriever is left, unless there is only nothing to search yet: that finds nothing."""
        if self.made.missing and set(self.made.retrievers) <= set(self.made.missing):
            raise Outage(
                f"no model for this search answers ({_reasons(self.made.missing)}): try again, or search by mode keyword"
            )
        if not self.made.retrievers:
            raise Conflict(
                f"search by meaning is not possible: {_reasons(self.made.refused)}; search by mode keyword"
            )

    def _coverage(self, used: set[str]) -> Coverage:
        request, made = self.request, self.made
        counted = self._count()
        # A model that has written nothing has no count.
        scenes = dict.fromkeys(self.names, 0) | counted.retrievers
        return Coverage(
            scenes=counted.scenes,
            with_words=counted.with_words,
            with_vectors=scenes["text"] if "text" in self.names else None,
            videos_in_work=counted.videos_in_work,
            not_looked_at=counted.not_looked_at,
            retrievers=tuple(
                RetrieverCoverage(
                    retriever=retriever,
                    used=retriever in used,
                    reason=made.missing.get(retriever) or made.refused.get(retriever),
                    model=self.names.get(retriever),
                    scenes=scenes.get(retriever),
                    weight=self.weights[retriever],
                )
                for retriever in (*OF_MODE[request.mode], *(("people",) if request.persons else ()))
            ),
        )

    def _link(self, key: str) -> str | None:
        if self.settings.storage_backend == "local":
            return None
        return self.runtime.storage.presign_get("sidecars", key, self.settings.search_link_s)


def _reasons(of_retrievers: Mapping[str, str]) -> str:
    return "; ".join(f"{retriever}: {why}" for retriever, why in of_retrievers.items())


def scope_of(session: Session, request: SearchScenes) -> search.Scope:
    """The scenes that a request covers: none if it names only ids that the user has not given."""
    videos = (*request.video_ids, *((request.video_id,) if request.video_id else ()))
    return search.Scope(
        user_id=request.user_id,
        video_ids=tuple(sorted(find_videos(session, request.user_id, videos).values())),
        persons=tuple(sorted(find_people(session, request.user_id, request.persons).values())),
        persons_match=request.persons_match,
        from_s=request.from_s,
        to_s=request.to_s,
        languages=tuple(sorted(set(request.languages))),
        indexed_from=_utc(request.indexed_from),
        indexed_to=_utc(request.indexed_to),
        without=request.like_scene,
        filters=search.read_filters(request.filters),
    )


def _utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo is not None else moment.replace(tzinfo=UTC)
