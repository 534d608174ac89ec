"""People of 200,000 tracks: merged, parted again and erased in batches, none of them a long transaction.

Rows are made by generate_series; SCENEFLEET_MANY_TRACKS sets how many (the default is a tenth, for everyday runs).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from bench.archive import write_archive
from db.engine import get_engine, reading, transact
from db.ledger import attempts, subjects
from db.ledger.claims import Claim
from db.people import acts, erasure, moves, registry
from db.people.unknowns import assign_people
from shared.errors import Conflict, LeaseLost
from tests.integration.test_people import (
    DIM,
    POLICY,
    RULE,
    axis,
    change,
    claim,
    create,
    film,
    id_of,
    model_id,
    must_claim,
    seen,
    tracks,
)
from worker.search import stored_answers
from worker.stages import erase_person, move
from worker.stages.context import Deferred, Outcome, StageContext

pytestmark = pytest.mark.usefixtures("database")

MANY = int(os.environ.get("SCENEFLEET_MANY_TRACKS", "20000"))
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


class _Runtime:
    policy = POLICY
    storage: Any = None


def context(claimed: Claim) -> StageContext:
    return StageContext(
        claimed=claimed,
        runtime=_Runtime(),
        folder=Path("/nowhere"),
        report=lambda fraction: None,  # type: ignore[arg-type]
    )


def put_back(claimed: Claim) -> None:
    transact(lambda session: attempts.defer(session, claimed, 0, POLICY, progressed=True))


def end(claimed: Claim, outcome: Outcome) -> None:
    transact(lambda session: attempts.finish(session, claimed, outcome.write, outcome.result, POLICY))


def run_move(within: int = 10_000) -> int:
    """Run the job that moves tracks, slice by slice, to its end. Returns how many slices it took."""
    for slices in range(1, within):
        claimed = must_claim("housekeeping")
        assert claimed.stage == "move"
        try:
            outcome = move.run(context(claimed))
        except Deferred as pause:
            assert pause.progressed
            put_back(claimed)
            continue
        end(claimed, outcome)
        return slices
    raise AssertionError("no end")


def merge(one: str, other: str) -> int:
    def work(session: Session) -> int:
        person, into = acts.lock_two(session, one, other, "u")
        return acts.merge(session, person, into, POLICY)[0]

    return int(transact(work))


def owners() -> dict[str | None, int]:
    with reading() as session:
        found = session.execute(text("SELECT person_id, count(*) FROM face_tracks GROUP BY person_id"))
        return {row.person_id: row.count for row in found}


def shown(person: str) -> Any:
    with reading() as session:
        return registry.view(session, registry.get(session, person, "u"))


def key_of(person: str) -> str:
    with reading() as session:
        return registry.get(session, person, "u").person_id


def test_many_tracks_are_merged_parted_and_erased_in_short_transactions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ann, bea = create("Ann"), create("Bea")
    populate(key_of(ann), MANY)
    figures = []

    def measure(what: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        with timed() as lasted:
            found = work()
        figures.append(
            f"{what}: {time.monotonic() - began:.1f} s, {len(lasted)} transactions, longest {max(lasted):.2f} s"
        )
        return found

    number = measure("merge, the request", lambda: merge(ann, bea))
    assert shown(bea).state == "working" and 0 < owners()[key_of(bea)] < MANY
    with pytest.raises(Conflict, match="is being merged or split"):
        transact(lambda session: acts.undo(session, "u", number, RULE, POLICY))
    measure("merge, the job", run_move)
    assert owners() == {key_of(bea): MANY} and shown(bea).scenes == MANY
    with reading() as session:
        changed = session.execute(text("SELECT count(*) FROM scenes WHERE people_changed")).scalar_one()
    assert changed == MANY, "their sidecars are written again"
    _end_matches()
    measure("undo, the request", lambda: transact(lambda s: acts.undo(s, "u", number, RULE, POLICY)))
    measure("undo, the job", run_move)
    assert owners() == {key_of(ann): MANY}
    _end_matches()
    measure("erase, the request", lambda: change(ann, lambda s, row: erasure.begin(s, row, POLICY)))
    assert shown(ann).state == "erasing" and shown(ann).scenes == 0
    measure("erase, the rows", lambda: _erase_rows(ann))
    with reading() as session:
        for table in ("face_tracks", "faces", "scene_people", "face_decisions", "moved_tracks"):
            assert session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 0, table
        noted = session.execute(
            text("SELECT count(*) FROM erasure_scenes WHERE scene_id <> :none"), {"none": erasure.NO_SCENE}
        )
        assert noted.scalar_one() == MANY
    with capsys.disabled():
        print(f"\n{MANY} tracks\n  " + "\n  ".join(figures))
    longest = max(float(line.rpartition("longest ")[2].removesuffix(" s")) for line in figures)
    assert longest < SHORT_S, figures


def _end_matches() -> None:
    """The matching of all videos is not what is measured."""
    transact(lambda s: s.execute(text("DELETE FROM jobs WHERE stage IN ('match', 'enroll')")))
    transact(lambda s: s.execute(text("UPDATE people SET ended_run = run")))


def _erase_rows(person: str) -> None:
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
    populate(key_of(ann), 3 * moves.BATCH)
    merge(ann, bea)
    claimed = must_claim("housekeeping")
    old = context(claimed)
    old.write(lambda session, job: moves.step(session, moves.read_move(claimed.payload)))
    before = owners()
    assert before[key_of(bea)] == moves.FIRST + moves.BATCH
    # Its worker is gone: another attempt has it.
    with reading() as session:
        (held,) = attempts.held_jobs(session)
    for _ in range(5):
        transact(lambda s: attempts.reclaim(s, held, LeaseLost("gone"), POLICY))
    with pytest.raises(LeaseLost):
        old.write(lambda session, job: moves.step(session, moves.read_move(claimed.payload)))
    assert owners() == before
    run_move()
    assert owners() == {key_of(bea): 3 * moves.BATCH}


def test_while_tracks_are_moved_a_second_merge_waits_and_matching_loses_none() -> None:
    ann, bea, cid = create("Ann"), create("Bea"), create("Cid")
    populate(key_of(ann), 2 * moves.BATCH)
    merge(ann, bea)
    for one, other in ((bea, cid), (cid, bea)):
        with pytest.raises(Conflict, match="'Bea' is being merged or split: try again"):
            merge(one, other)
    change(bea, lambda session, row: registry.rename(session, row, "Bee"))
    # A video with tracks that wait is looked at again: nobody there is like anybody.
    with reading() as session:
        video = session.execute(
            text("SELECT video_id FROM face_tracks WHERE person_id = :ann LIMIT 1"), {"ann": _key("Ann")}
        ).scalar_one()

    def look(session: Session) -> None:
        row = subjects.lock_video(session, video)
        assert row is not None
        assign_people(session, row, RULE)

    transact(look)
    run_move()
    assert owners() == {key_of(bea): 2 * moves.BATCH} and shown(bea).name == "Bee"
    with reading() as session:
        assert (
            session.execute(text("SELECT count(*) FROM people WHERE moving_event IS NOT NULL")).scalar_one()
            == 0
        )


def _key(name: str) -> str:
    with reading() as session:
        found = session.execute(text("SELECT person_id FROM people WHERE name = :name"), {"name": name})
        return str(found.scalar_one())


def test_a_person_erased_while_tracks_come_takes_them_along() -> None:
    ann, bea = create("Ann"), create("Bea")
    keys = {_key("Ann"), _key("Bea")}
    populate(_key("Ann"), 2 * moves.BATCH)
    merge(ann, bea)
    change(bea, lambda session, row: erasure.begin(session, row, POLICY))
    assert shown(bea).state == "erasing"
    stages = {}
    while claimed := claim("housekeeping"):
        stages[claimed.stage] = stages.get(claimed.stage, 0) + 1
        if claimed.stage == "move":
            try:
                end(claimed, move.run(context(claimed)))
            except Deferred:
                put_back(claimed)
            continue
        with reading() as session:
            moving = moves.under_way(session, "u", keys)
        work = erase_person._Erasure(context(claimed))
        if moving:
            with pytest.raises(Deferred):
                work.run()
            put_back(claimed)
            continue
        work._note(work._begin)
        work._remove_rows()
        break
    assert stages["move"] and owners() == {}


def test_a_split_of_somebody_seen_often_is_short_and_undone() -> None:
    film("v", [[axis(0)] * 2], [[axis(0, 0.8)] * 2])
    one = id_of("unknown 1")
    populate(one, 2 * moves.BATCH, dim=DIM)
    track = str(tracks("v")[1].track_id)
    with timed() as lasted:
        new, number, _ = change(one, lambda s, row: acts.split(s, row, [track], "Bea", RULE, POLICY))
    assert max(lasted) < SHORT_S and seen()[1].keys() == {"Bea"}
    with reading() as session:
        decided = session.execute(
            text("SELECT count(*) FROM face_decisions WHERE event_id = :e"), {"e": number}
        )
        assert decided.scalar_one() == 2002
    _end_matches()
    transact(lambda s: acts.undo(s, "u", number, RULE, POLICY))
    with reading() as session:
        assert session.execute(text("SELECT count(*) FROM face_decisions")).scalar_one() == 0
    assert owners() == {one: 2 * moves.BATCH + 2} and new.person_id
