"""The long run of faults (``make test-faults``): more videos, more rounds, rarer faults, the default lease.

Prints its seed; ``FAULTS_SEED=...`` repeats it. The compact form is ``tests/acceptance/test_faults.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.faults.campaign import (
    Stand,
    restart_dead,
    run_disturbed,
    run_killed,
    run_undisturbed,
    seed_of,
    stand,
    wait_indexed,
    wake_ups_received,
)
from tests.faults.material import SPANS, Source, cut_clips, sources
from tests.faults.proxy import LossyProxy
from tests.faults.results import Results, differences, leftovers
from tests.support.fleet import FAMILIES, eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

#: Random kills, and the videos of one round of them; fewer take less than hours.
KILLS = int(os.environ.get("FAULTS_KILLS", "1000"))
KILLED_VIDEOS = int(os.environ.get("FAULTS_VIDEOS", "40"))
#: Faults of storage and disks have rounds of their own.
KINDS_OF_KILLS = (
    "pool child kill -9", "node kill -9, restarted", "Redis restart", "Redis kill -9", "Redis FLUSHALL",
    "Postgres restart", "Postgres kill -9", "pool child frozen", "node frozen", "Redis frozen", "Postgres frozen",
)  # fmt: skip
VIDEOS = 18
ROUNDS = 3
#: Each kind of fault happens so often in a round.
TIMES = 2
NOTICED_WITHIN_S = 90


@pytest.fixture(scope="module")
def clips(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cut_clips(sample, tmp_path_factory.mktemp("clips"), SPANS)


@pytest.fixture(scope="module")
def videos(clips: list[Path]) -> list[Source]:
    return sources(clips, VIDEOS, users=4)


@pytest.fixture(scope="module")
def the_stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Messages that were taken and never acknowledged come back after 30 s here, not after an hour."""
    folder = tmp_path_factory.mktemp("stand")
    with stand(folder, LEASE_S="30", VISIBILITY_TIMEOUT_S="30") as made:
        made.fleet.start(*(family for family in FAMILIES if family != "media"))
        made.fleet.start("media", concurrency=2, LEASE_S="6")
        made.fleet.wait_ready()
        yield made


@pytest.fixture(scope="module")
def undisturbed(the_stand: Stand, videos: list[Source]) -> Results:
    results = run_undisturbed(the_stand.fleet, videos, within_s=600)
    assert leftovers(the_stand.fleet) == []
    the_stand.start_over()
    return results


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_round_of_everything(
    the_stand: Stand, undisturbed: Results, videos: list[Source], number: int
) -> None:
    fleet = the_stand.fleet
    restart_dead(fleet)
    fleet.wait_ready()
    the_stand.start_over()
    chaos = the_stand.new_chaos(seed_of("FAULTS_SEED") + number)
    print(f"\nround {number}: FAULTS_SEED={chaos.seed - number}")
    kinds = [*list(chaos.kinds) * TIMES, *chaos.rarer_kinds]
    chaos.random.shuffle(kinds)
    wake_ups = wake_ups_received(fleet)
    began = time.monotonic()
    disturbed = run_disturbed(chaos, videos, kinds, within_s=600)
    notified = (wake_ups_received(fleet) - wake_ups).total()
    (jobs,) = fleet.rows(
        "SELECT count(*) AS jobs, sum(attempt) AS attempts, sum(failures) AS failures, sum(outages) AS outages"
        " FROM jobs WHERE attempt > 0"
    )
    print(chaos.table())
    print(
        f"{time.monotonic() - began:.0f} s, {jobs}, {notified} wake-up messages received, {chaos.resent} requests sent again"
    )
    assert leftovers(fleet) == []
    assert differences(undisturbed, disturbed) == []
    with redis.Redis.from_url(fleet.redis_url) as client:
        eventually(
            lambda: client.hlen("unacked") == 0,
            within_s=90,
            what="messages that dead workers had taken came back, and claimed nothing",
        )


@pytest.mark.timeout(12 * 3600)
def test_random_kills_are_not_poison(the_stand: Stand, clips: list[Path]) -> None:
    """Rounds of the same videos, until there were so many kills: every video is indexed, as without any."""
    fleet = the_stand.fleet
    videos = sources(clips, KILLED_VIDEOS, users=4)
    restart_dead(fleet)
    fleet.wait_ready()
    the_stand.start_over()
    undisturbed = run_undisturbed(fleet, videos, within_s=1800)
    seed, kills = seed_of("FAULTS_SEED"), 0
    print(f"\nFAULTS_SEED={seed}")
    while kills < KILLS:
        the_stand.start_over()
        chaos = the_stand.new_chaos(seed + kills)
        disturbed = run_killed(chaos, videos, KINDS_OF_KILLS, KILLS - kills, within_s=1800)
        kills += len(chaos.faults)
        (counted,) = fleet.rows(
            "SELECT sum(deaths) AS deaths, sum(deaths_alone) AS alone, max(deaths) AS most, sum(outages) AS outages,"
            " max(outages) AS most_outages FROM jobs"
        )
        print(chaos.table())
        print(f"{kills} kills, {counted}")
        assert leftovers(fleet) == []
        assert differences(undisturbed, disturbed) == []
        assert not fleet.rows("SELECT 1 FROM jobs WHERE not_looked_at IS NOT NULL"), (
            "a kill was taken for poison"
        )


def test_one_deadly_keyframe_costs_that_keyframe_only(the_stand: Stand, clips: list[Path]) -> None:
    fleet = the_stand.fleet
    restart_dead(fleet)
    fleet.wait_ready()
    the_stand.start_over()
    rule = the_stand.injection.die("face", "deadly", keyframe=(1, 0))
    fleet.process(clips[0], "deadly")
    # Its sweep waits for a retry.
    fleet.wait_for("deadly", "indexed", within_s=300)
    face = next(stage for stage in fleet.client.status("deadly", "u1").stages if stage.stage == "face")
    assert (face.state, face.not_looked_at) == ("done", 1)
    gaps = {scene.idx: scene.not_looked_at for scene in fleet.client.scenes("deadly", "u1").scenes}
    assert [(idx, gap.keyframes) for idx, found in gaps.items() for gap in found] == [(1, (0,))]
    print(f"\n{len(rule.met)} deaths to find it")
    rule.lift()
    fleet.client.retry("deadly", "u1")
    fleet.wait_for("deadly", "indexed")
    face = next(stage for stage in fleet.client.status("deadly", "u1").stages if stage.stage == "face")
    assert face.not_looked_at == 0


def test_commits_whose_answers_are_lost(the_stand: Stand, undisturbed: Results, videos: list[Source]) -> None:
    """One in four commits of every node is done, and the node can't know."""
    fleet = the_stand.fleet
    the_stand.start_over()
    with LossyProxy(fleet.postgres_url, share=0.25, seed=seed_of("FAULTS_SEED")) as proxy:
        fleet.stop()
        for family in FAMILIES:
            fleet.start(family, POSTGRES_URL=proxy.url, LEASE_S="15")
        fleet.wait_ready()
        disturbed = run_undisturbed(fleet, videos, within_s=600)
        print(f"\n{proxy.lost} commits whose answer was lost")
        assert proxy.lost > 50
        assert leftovers(fleet) == []
        assert differences(undisturbed, disturbed) == []
        fleet.stop()


def test_the_loss_of_a_whole_machine_is_noticed_in_time(
    tmp_path_factory: pytest.TempPathFactory, clips: list[Path]
) -> None:
    """With the default lease: the dead node is not restarted, another one takes its job."""
    folder = tmp_path_factory.mktemp("default")
    with stand(folder) as made:
        fleet = made.fleet
        for name in (
            "LEASE_S",
            "HEARTBEAT_S",
            "RECONCILE_S",
            "BACKOFF_S",
            "BACKOFF_MAX_S",
            "SOFT_SHUTDOWN_S",
        ):
            fleet.environment.pop(name)
        fleet.start("search")
        fleet.start("media", name="lost")
        fleet.wait_ready()
        held = made.injection.hold("split", "orphan", times=1)
        source = Source("orphan", "u1", clips[0])
        fleet.process(source.path, source.video_id)
        held.wait_met()
        fleet.start("asr", "text", "face", "ocr")
        fleet.start("media", name="other")
        fleet.wait_ready()
        fleet.kill("lost")
        fleet.nodes.pop("lost")
        killed = time.monotonic()
        eventually(
            lambda: fleet.rows("SELECT 1 FROM jobs WHERE stage = 'split' AND attempt = 2"),
            within_s=NOTICED_WITHIN_S,
            what="another node has taken the job",
        )
        print(f"\nnoticed after {time.monotonic() - killed:.1f} s")
        wait_indexed(fleet, [source], within_s=120)
        (row,) = fleet.rows("SELECT failures, outages FROM jobs WHERE stage = 'split'")
        assert row == {"failures": 0, "outages": 1}
        # The working folder of a machine that is gone does not count.
        assert [found for found in leftovers(fleet) if "/lost@" not in found] == []
