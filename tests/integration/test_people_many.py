"""People of 200,000 tracks: merged, parted again and erased in batches, none of them a long transaction.

Rows are made by generate_series; SCENEFLEET_MANY_TRACKS sets how many (the default is a twentieth, for everyday runs).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, text

from bench.archive import write_archive
from db.engine import get_engine, reading, transact
from db.ledger import attempts
from db.ledger.claims import Claim
from db.people import erasure, moves
from shared.errors import Conflict, LeaseLost
from tests.support.people import (
    DIM,
    POLICY,
    axis,
    change,
    claim,
    create,
    film,
    id_of,
    match,
    merge,
    model_id,
    must_claim,
    rename,
    seen,
    split,
    tracks,
    undo,
    view,
)
from worker.search import stored_answers
from worker.stages import erase_person, move
from worker.stages.context import Deferred, StageContext

pytestmark = pytest.mark.usefixtures("database")

MANY = int(os.environ.get("SCENEFLEET_MANY_TRACKS", "10000"))
#: Half of it on a machine that has nothing else to do.
SHORT_S = 4.0
#: One video has so many scenes, and so many tracks of the person.
PER_VIDEO = 500


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Redis here: what an erasure removes there is another test's (test_erasure.py)."""
    monkeypatch.setattr(stored_answers, "now", time.time)


def populate(person: str, count: int, dim: int = 4) -> None:
    """Give a person tracks, a scene each, in published videos."""
    write_archive(person, count, user="u", model=model_id(), prefix="big", per_video=PER_VIDEO, dim=dim)


@contextmanager
def timed() -> Iterator[list[float]]:
    """How long each transaction of this process lasts, seconds."""
    lasted: list[float] = []
    began: dict[int, float] = {}
    engine = get_engine()

    def begin(connection: Any) -> None:
        began[id(connection)] = time.monotonic()

    def end(connection: Any) -> None:
        lasted.append(time.monotonic() - began.pop(id(connection), time.monotonic()))

    event.listen(engine, "begin", begin)
    event.listen(engine, "commit", end)
    yield lasted
    event.remove(engine, "begin", begin)
    event.remove(engine, "commit", end)


def context(claimed: Claim) -> StageContext:
    runtime: Any = SimpleNamespace(policy=POLICY, storage=None)
    return StageContext(
        claimed=claimed, runtime=runtime, folder=Path("/nowhere"), report=lambda fraction: None
    )


def put_back(claimed: Claim) -> None:
    transact(lambda session: attempts.defer(session, claimed, 0, POLICY, progressed=True))


def run_slice(claimed: Claim) -> bool:
    """Run a slice of a job that moves tracks. Returns whether it was the last."""
    assert claimed.stage == "move"
    try:
        outcome = move.run(context(claimed))
    except Deferred as pause:
        assert pause.progressed
        put_back(claimed)
        return False
    transact(lambda session: attempts.finish(session, claimed, outcome.write, outcome.result, POLICY))
    return True


def run_move() -> None:
    while not run_slice(must_claim("housekeeping")):
        pass


def count(query: str, **values: Any) -> int:
    with reading() as session:
        return int(session.execute(text(f"SELECT count(*) FROM {query}"), values).scalar_one())


def owners() -> dict[str | None, int]:
    with reading() as session:
        found = session.execute(text("SELECT person_id, count(*) FROM face_tracks GROUP BY person_id"))
        return {row.person_id: row.count for row in found}


def test_many_tracks_are_merged_parted_and_erased_in_short_transactions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ann, bea = create("Ann"), create("Bea")
    populate(ann, MANY)
    figures, longest = [], []

    def measure(what: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        with timed() as lasted:
            found = work()
        longest.append(max(lasted))
        lasted_s = time.monotonic() - began
        figures.append(f"{what}: {lasted_s:.1f} s, {len(lasted)} transactions, longest {max(lasted):.2f} s")
        return found

    number = measure("merge, the request", lambda: merge(ann, bea))
    assert view(bea).state == "working" and 0 < owners()[bea] < MANY
    with pytest.raises(Conflict, match="is being merged or split"):
        undo(number)
    measure("merge, the job", run_move)
    assert owners() == {bea: MANY} and view(bea).scenes == MANY
    assert count("scenes WHERE people_changed") == MANY, "their sidecars are written again"
    _end_matches()
    measure("undo, the request", lambda: undo(number))
    measure("undo, the job", run_move)
    assert owners() == {ann: MANY}
    _end_matches()
    measure("erase, the request", lambda: change(ann, lambda s, row: erasure.begin(s, row, POLICY)))
    assert view(ann).state == "erasing" and view(ann).scenes == 0
    measure("erase, the rows", _erase_rows)
    for table in ("face_tracks", "faces", "scene_people", "face_decisions", "moved_tracks"):
        assert count(table) == 0, table
    assert count("erasure_scenes WHERE scene_id <> :none", none=erasure.NO_SCENE) == MANY
    with capsys.disabled():
        print(f"\n{MANY} tracks\n  " + "\n  ".join(figures))
    assert max(longest) < SHORT_S, figures


def _end_matches() -> None:
    """The matching of all videos is not what is measured."""
    transact(lambda s: s.execute(text("DELETE FROM jobs WHERE stage IN ('match', 'enroll')")))
    transact(lambda s: s.execute(text("UPDATE people SET ended_run = run")))


def _erase_rows() -> None:
    """The part of the job that removes rows: slices of it, until the next part would begin."""
    while True:
        claimed = must_claim("housekeeping")
        assert claimed.stage == "erase_person"
        work = erase_person._Erasure(context(claimed))
        try:
            if "total" not in work.payload:
                work._note(work._begin)
            work._remove_rows()
        except Deferred as pause:
            assert pause.progressed, "it makes room for others, it does not wait"
            put_back(claimed)
            continue
        assert work.payload["rows_gone_at"]
        return


def test_a_killed_move_goes_on_where_it_was_and_the_old_attempt_moves_nothing() -> None:
    ann, bea = create("Ann"), create("Bea")
    populate(ann, 3 * moves.BATCH)
    merge(ann, bea)
    claimed = must_claim("housekeeping")
    old = context(claimed)
    old.write(lambda session, job: moves.step(session, moves.read_move(claimed.payload)))
    before = owners()
    assert before[bea] == moves.FIRST + moves.BATCH
    # Its worker is gone: another attempt has it.
    with reading() as session:
        (held,) = attempts.held_jobs(session)
    for _ in range(5):
        transact(lambda s: attempts.reclaim(s, held, LeaseLost("gone"), POLICY))
    with pytest.raises(LeaseLost):
        old.write(lambda session, job: moves.step(session, moves.read_move(claimed.payload)))
    assert owners() == before
    run_move()
    assert owners() == {bea: 3 * moves.BATCH}


def test_while_tracks_are_moved_a_second_merge_waits_and_matching_loses_none() -> None:
    ann, bea, cid = create("Ann"), create("Bea"), create("Cid")
    populate(ann, 2 * moves.BATCH)
    merge(ann, bea)
    for one, other in ((bea, cid), (cid, bea)):
        with pytest.raises(Conflict, match="'Bea' is being merged or split: try again"):
            merge(one, other)
    rename(bea, "Bee")
    # A video with tracks that wait is looked at again: no one in it is similar to another.
    first = text("SELECT video_id FROM face_tracks WHERE person_id = :ann LIMIT 1")
    transact(lambda session: match(session, session.execute(first, {"ann": ann}).scalar_one()))
    run_move()
    assert owners() == {bea: 2 * moves.BATCH} and view(bea).name == "Bee"
    assert count("people WHERE moving_event IS NOT NULL") == 0


def test_a_person_erased_while_tracks_come_takes_them_along() -> None:
    ann, bea = create("Ann"), create("Bea")
    populate(ann, 2 * moves.BATCH)
    merge(ann, bea)
    change(bea, lambda session, row: erasure.begin(session, row, POLICY))
    assert view(bea).state == "erasing"
    stages = set()
    while claimed := claim("housekeeping"):
        stages.add(claimed.stage)
        if claimed.stage == "move":
            run_slice(claimed)
            continue
        with reading() as session:
            moving = moves.under_way(session, "u", {ann, bea})
        work = erase_person._Erasure(context(claimed))
        if moving:
            with pytest.raises(Deferred):
                work.run()
            put_back(claimed)
            continue
        work._note(work._begin)
        work._remove_rows()
        break
    assert "move" in stages and owners() == {}


def test_a_split_of_somebody_seen_often_is_short_and_undone() -> None:
    film("v", [[axis(0)] * 2], [[axis(0, 0.8)] * 2])
    one = id_of("unknown 1")
    populate(one, 2 * moves.BATCH, dim=DIM)
    with timed() as lasted:
        _, number = split(one, tracks("v")[1], "Bea")
    assert max(lasted) < SHORT_S and seen()[1].keys() == {"Bea"}
    assert count("face_decisions WHERE event_id = :event", event=number) == 2002
    _end_matches()
    undo(number)
    assert count("face_decisions") == 0
    assert owners() == {one: 2 * moves.BATCH + 2}
