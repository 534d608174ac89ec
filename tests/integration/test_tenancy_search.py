"""Nobody is answered with another user's row: random users, filters, people, scenes and cursors, through the whole answer
of a search and every other request that reads; then once more with the scoping taken out of every statement."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import event

from db.engine import get_engine, reading
from db.search import Found
from shared.contracts import SearchAnswer, SearchScenes, parse
from shared.errors import InvalidRequest, NotFound
from tasks import people, video
from tests.integration.conftest import Configure
from tests.support import tenants
from tests.support.tenants import (
    DIM,
    EPOCH,
    USERS,
    WORDS,
    Shot,
    World,
    make_models,
    populate,
    secret,
    unit,
    weigh,
)
from worker.runtime import Runtime
from worker.search import answer, plan
from worker.search.cursor import write_cursor
from worker.search.plan import OF_MODE

pytestmark = pytest.mark.usefixtures("database")

#: What makes a statement one user's.
_SCOPED = re.compile(r"(?:\w+\.)?user_id = %\(\w+\)s(?:::\w+)?")
Ask = Callable[[SearchScenes], SearchAnswer]


class Searches:
    """Searches of this process: the catalogue of the full profile, models of 8 numbers under its names, queues that answer."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        specs, families = runtime.catalog.active(runtime.settings), ("text", "vision", "face", "ocr")
        self.models = make_models({name: (specs[name].name, specs[name].revision) for name in families})

    def ask(self, request: SearchScenes, seed: int, exact_rows: int) -> SearchAnswer:
        chosen = self.runtime.settings.model_copy(
            update={"search_exact_rows": exact_rows, "search_cutoff": False}
        )
        runtime = Runtime(chosen)
        plan.check(request, chosen)
        made = plan.plan(request, runtime)
        numbers, rng = np.random.default_rng(seed), random.Random(seed)
        queues: dict[str, Any] = {}
        for queue in made.calls:
            model, weights = self.models[queue], {str(token): weight for token, weight in weigh(rng).items()}
            said = {"model": model.name, "revision": model.revision, "dim": DIM}
            said |= {"vectors": [unit(numbers).tolist()], "lexical": [weights] if queue == "text" else None}
            queues[queue] = {"ok": said}
        return answer.answer(request, runtime, made, queues)


@pytest.fixture
def machine(database: str, configure: Configure) -> Searches:
    return Searches(configure(SCENEFLEET_PROFILE="full"))


@contextmanager
def unscoped() -> Iterator[list[str]]:
    """Take ``user_id = ...`` out of every statement of this process; gives the statements it was taken out of."""
    changed: list[str] = []

    def forget(_: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: bool) -> tuple[str, Any]:
        without, found = _SCOPED.subn("true", statement)
        if found:
            changed.append(statement)
        return without, parameters

    engine = get_engine()
    event.listen(engine, "before_cursor_execute", forget, retval=True)
    try:
        yield changed
    finally:
        event.remove(engine, "before_cursor_execute", forget)


@st.composite
def payloads(draw: st.DrawFn) -> dict[str, Any]:
    """Who asks for what: ids are places among everybody's."""
    place = st.integers(0, 100)
    kind = draw(st.sampled_from(["words", "words", "like", "people"]))
    words = st.lists(
        st.sampled_from([*WORDS, *map(secret, USERS), "-cat", '"', "or"]), min_size=1, max_size=5
    )
    return {
        "user_id": draw(st.sampled_from(USERS)),
        "mode": draw(st.sampled_from(["keyword", "semantic", "hybrid"] if kind == "words" else ["semantic", "hybrid"])),
        "query": " ".join(draw(words)) if kind == "words" else None,
        "like_scene": draw(place) if kind == "like" else None,
        "persons": draw(st.lists(place, min_size=1 if kind == "people" else 0, max_size=3)),
        "persons_match": draw(st.sampled_from(["any", "all", "prefer"])),
        "video_ids": draw(st.lists(place, max_size=4)),
        "from_s": draw(st.sampled_from([None, None, 0, 5, 15])),
        "to_s": draw(st.sampled_from([None, None, 20, 35])),
        "languages": draw(st.lists(st.sampled_from([code for code in tenants.LANGUAGES if code]), max_size=2)),
        "indexed_from": draw(st.sampled_from([None, None, 0, 3])),
        "indexed_to": draw(st.sampled_from([None, None, 4, 9])),
        "limit": draw(st.integers(1, 20)),
        "min_score": draw(st.sampled_from([None, 0.1])),
    }  # fmt: skip


def request_of(payload: dict[str, Any], world: World) -> SearchScenes:
    """The payload with the users' real ids in place of the numbers, and one that belongs to no user."""
    videos, persons = [*world.videos, "nobodys"], [*world.persons, "nobodys"]
    filled = {name: value for name, value in payload.items() if value not in (None, [])}
    if "like_scene" in filled:
        filled["like_scene"] = str(world.shots[filled["like_scene"] % len(world.shots)].id)
    for name, known in (("persons", persons), ("video_ids", videos)):
        if name in filled:
            filled[name] = [known[place % len(known)] for place in filled[name]]
    for name in ("indexed_from", "indexed_to"):
        if name in filled:
            filled[name] = (EPOCH + timedelta(days=filled[name])).isoformat()
    return parse(SearchScenes, filled)


def in_scope(request: SearchScenes, shot: Shot) -> bool:
    """Whether a scene may be found, by the plain meaning of the request."""
    persons, days = set(request.persons), (request.indexed_from, request.indexed_to)
    seen = len(persons & shot.persons)
    return (
        shot.user == request.user_id
        and shot.live
        and shot.id != request.like_scene
        and (not request.video_ids or shot.video in request.video_ids)
        and (not persons or request.persons_match == "prefer" or seen >= (len(persons) if request.persons_match == "all" else 1))
        and (request.from_s is None or shot.idx * 10 + 10 > request.from_s)
        and (request.to_s is None or shot.idx * 10 < request.to_s)
        and (not request.languages or shot.language in request.languages)
        and (days[0] is None or shot.indexed >= days[0])
        and (days[1] is None or shot.indexed < days[1])
    )  # fmt: skip


def check_search(world: World, request: SearchScenes, ask: Ask) -> None:
    """Ask, turn all pages, and look at everything that came."""
    like = next((shot for shot in world.shots if shot.id == request.like_scene), None)
    if like is not None and (like.user != request.user_id or not like.live):
        with pytest.raises(NotFound, match=f"no scene '{like.id}'"):
            ask(request)
        return
    may = {str(shot.id) for shot in world.shots if in_scope(request, shot)}
    found: list[str] = []
    page: SearchScenes | None = request
    while page is not None:
        answer = ask(page)
        assert answer.coverage.scenes == len(may)
        assert answer.coverage.videos_in_work == 0
        assert all((retriever.scenes or 0) <= len(may) for retriever in answer.coverage.retrievers)
        shown = {who.person_id for hit in answer.hits for who in hit.highlights.people}
        assert {world.persons[person] for person in shown} <= {request.user_id}
        # Whatever is in the answer, in whichever field; the query is the asker's own.
        said = json.dumps(answer.model_dump(mode="json", exclude={"query"}))
        assert not any(secret(user) in said for user in USERS if user != request.user_id)
        found += [hit.scene_id for hit in answer.hits]
        page = request.model_copy(update={"cursor": answer.next_cursor}) if answer.next_cursor else None
    assert set(found) <= may and len(set(found)) == len(found)
    if request.mode != "keyword" and request.min_score is None and request.query is not None:
        assert set(found) == may, "a filter never empties the answer"


def check_cursors(world: World, request: SearchScenes, ask: Ask) -> None:
    """Another user's cursor is refused; one's own that names another user's place shows one's own scenes."""
    other = next(user for user in USERS if user != request.user_id)
    theirs = next(shot for shot in world.shots if shot.user == other)
    place = Found(theirs.id, theirs.video, theirs.idx, 0.5, {})
    of_other = write_cursor(request.model_copy(update={"user_id": other}), place)
    with pytest.raises(InvalidRequest, match="belongs to another search"):
        ask(request.model_copy(update={"cursor": of_other}))
    answer = ask(request.model_copy(update={"cursor": write_cursor(request, place)}))
    assert {world.owner(hit.scene_id) for hit in answer.hits} <= {request.user_id}


def check_requests(world: World, user: str) -> None:
    """Every other request that reads."""
    others = [secret(name) for name in USERS if name != user]

    def shown(ask: Any, **ids: Any) -> dict[str, Any]:
        answer: dict[str, Any] = ask(user_id=user, **ids)
        text = json.dumps(answer)
        assert not any(word in text for word in others), ask.name
        return answer

    mine = {person for person, owner in world.persons.items() if owner == user}
    listed = shown(people.list_people)["people"]
    assert {person["person_id"] for person in listed} == mine
    live = {shot.id for shot in world.shots if shot.user == user and shot.live}
    for person in listed:
        seen = [shot for shot in world.shots if shot.id in live and person["person_id"] in shot.persons]
        assert (person["scenes"], person["videos"]) == (len(seen), len({shot.video for shot in seen}))
        assert person["photos"] == 1 and person["state"] == "ready"
    assert {event["person_id"] for event in shown(people.list_events)["events"]} == mine
    of_kind = {
        "person": (world.persons, (people.get, people.photos, people.faces)),
        "video": (world.videos, (video.status, video.scenes, video.timeline, video.media, video.subtitles)),
    }
    for kind, (known, requests) in of_kind.items():
        for key, owner in known.items():
            for ask in requests:
                if owner == user:
                    shown(ask, **{f"{kind}_id": key})
                else:
                    with pytest.raises(NotFound, match=f"no {kind} '{key}'"):
                        ask(user_id=user, **{f"{kind}_id": key})
    listed = {
        (video_id, UUID(scene["scene_id"]))
        for video_id, owner in world.videos.items()
        if owner == user
        for scene in shown(video.scenes, video_id=video_id)["scenes"]
    }
    assert listed == {(shot.video, shot.id) for shot in world.shots if shot.id in live}


def check_all(
    machine: Searches, world: World, seed: int, several: list[dict[str, Any]], exact_rows: int
) -> None:
    for number, payload in enumerate(several):
        request = request_of(payload, world)
        ask = partial(machine.ask, seed=seed + number, exact_rows=exact_rows)
        check_search(world, request, ask)
        if request.like_scene is None:
            check_cursors(world, request, ask)
    check_requests(world, several[0]["user_id"])


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**32),
    several=st.lists(payloads(), min_size=3, max_size=6),
    exact_rows=st.sampled_from([0, 3, 10_000]),
)
def test_nobody_is_answered_with_another_users_rows_and_the_second_wall_holds_alone(
    machine: Searches, seed: int, several: list[dict[str, Any]], exact_rows: int
) -> None:
    world = populate(seed, machine.models)
    check_all(machine, world, seed, several, exact_rows)
    with unscoped() as changed:
        check_all(machine, world, seed, several, exact_rows)
    assert len(changed) > 20


def test_without_both_walls_it_would_be_seen(machine: Searches, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the checks above can fail: what they rest on is taken away, one after the other."""
    world = populate(1, machine.models)
    request = parse(SearchScenes, {"user_id": "u1", "query": " ".join(WORDS), "mode": "hybrid", "limit": 50})
    ask = partial(machine.ask, seed=1, exact_rows=10_000)
    check_search(world, request, ask)
    used = {retriever.retriever for retriever in ask(request).coverage.retrievers if retriever.used}
    assert used == set(OF_MODE["hybrid"])
    with unscoped():
        check_search(world, request, ask)
        check_requests(world, "u1")
        for module in ("worker.search.answer", "tasks.requests"):
            monkeypatch.setattr(f"{module}.reading_as", lambda user_id, snapshot=False: reading())
        with pytest.raises(AssertionError):
            check_search(world, request, ask)
        with pytest.raises(AssertionError):
            check_requests(world, "u1")
        assert {world.owner(hit.scene_id) for hit in ask(request).hits} == set(USERS)
