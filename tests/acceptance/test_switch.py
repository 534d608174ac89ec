"""The text model of an archive is switched while searches go on: built beside, compared, activated, rolled back, discarded."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.engine import make_engine
from db.scenes import scene_id, write_scenes
from db.tables import Run, Video
from db.vectors import ensure_index, ensure_model, write_embeddings
from shared.contracts import SearchAnswer, SwitchView
from shared.errors import Conflict, InvalidRequest, ModelUnavailable, NotFound, ScenefleetError
from tests.acceptance.conftest import MakeFleet
from tests.checkpoints import bge_m3, write_catalog
from tests.support.catalogs import own_catalog
from tests.support.excerpt import write_excerpt
from tests.support.fleet import ROOT, Fleet, eventually
from worker.models.catalog import load_catalog

pytestmark = pytest.mark.timeout(600)

USER, OTHER = "u1", "u2"
OLD, NEW = "all-minilm-l6-v2", "tiny-bge-m3"
VIDEOS, SCENES = 12, 60
_WORDS = (
    "rocket ocean kitchen violin winter bridge garden engine market candle"
    " forest harbour letter mountain orchestra planet river shadow temple window"
)


def sentences(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.sample(_WORDS.split(), 6)) for _ in range(count)]


QUERIES = ["a rocket over the ocean", "candle in the kitchen window", "the orchestra plays in winter"]


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A lite fleet whose catalogue has a second text model, and an archive of two users that the first one embedded."""
    weights = tmp_path_factory.mktemp("weights")
    tiny = bge_m3.build(weights / "bge").model_copy(update={"profiles": ()})
    rerank_like = tiny.model_copy(update={"name": "not-searched", "family": "text", "kind": "rerank"})
    with own_catalog(weights, tiny=tiny, rerank=rerank_like) as catalog:
        # The machine may be busy: what is shown is that no search is given up, not how quick one is.
        environment = {"SCENEFLEET_MODELS_FILE": str(catalog.path), "SEARCH_DEADLINE_S": "20"}
        # Half of the archive is searched by the index.
        environment |= {"SCENEFLEET_USER": USER, "SEARCH_EXACT_ROWS": "300"}
        made = make_fleet(FEATURE_FACE="0", FEATURE_OCR="0", **environment)
        made.start("media", "housekeeping", "search")
        made.start("text", concurrency=2)
        made.wait_ready(within_s=180)
        fill(made)
        yield made


def fill(fleet: Fleet) -> None:
    """Twelve videos whose scenes say something each; every third one is the other user's."""
    minilm = load_catalog().get(OLD)
    model: Any = {
        "name": OLD,
        "revision": minilm.revision,
        "family": "text",
        "dim": minilm.dim,
        "metric": "cosine",
    }
    now = text("clock_timestamp()")
    engine = make_engine(fleet.postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        row = ensure_model(session, **model)
        session.commit()
        for number in range(VIDEOS):
            video, user = f"v{number:02}", OTHER if number % 3 == 0 else USER
            said = sentences(SCENES, number)
            published = {
                "storage_key": "k",
                "state": "indexed",
                "run": 1,
                "published_run": 1,
                "indexed_at": now,
            }
            session.add(Video(video_id=video, user_id=user, **published))
            session.flush()
            stages = {"stages": [], "stage_runs": {"split": 1, "text": 1}}
            session.add(Run(video_id=video, run=1, ended_at=now, **stages))
            common = {"kind": "cut", "keyframes": [], "live": True, "text_run": 1}
            scenes = [
                {**common, "idx": idx, "start_s": 5.0 * idx, "end_s": 5.0 * idx + 5, "transcript": words}
                for idx, words in enumerate(said)
            ]
            write_scenes(session, video, user, 1, scenes)
            ids = [scene_id(video, 1, idx) for idx in range(SCENES)]
            vectors = np.asarray(fleet.client.embed_texts(said).vectors, np.float32)
            rows = [(scene, 0, vector) for scene, vector in zip(ids, vectors, strict=True)]
            write_embeddings(session, row, 1, user, ids, rows)
            session.commit()
    ensure_index(engine, row)
    engine.dispose()


def switch_json(fleet: Fleet, *arguments: str, status: int = 0) -> Any:
    done = fleet.command("models", "switch", "text", *arguments, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def opened(fleet: Fleet) -> SwitchView | None:
    return fleet.client.models("text").switch


def found(fleet: Fleet, user: str = USER) -> list[list[tuple[str, float]]]:
    """What the queries find by the active model: hits and scores."""
    answers = [fleet.client.search(user, query, mode="semantic", limit=20) for query in QUERIES]
    assert all(not answer.degraded for answer in answers)
    return [[(hit.scene_id, hit.score) for hit in answer.hits] for answer in answers]


def vectors_of(fleet: Fleet, name: str) -> int:
    return len(fleet.rows("SELECT 1 FROM embeddings JOIN models USING (model_id) WHERE name = %s", name))


def ended(fleet: Fleet) -> None:
    eventually(lambda: opened(fleet) is None, within_s=60, what="the switch has ended")


class Searcher(threading.Thread):
    """A caller who searches all the time, by meaning and in every way; ``fresh``: with queries whose vectors are not kept."""

    def __init__(self, fleet: Fleet, *, fresh: bool = False) -> None:
        super().__init__(daemon=True)
        self._fresh = fresh
        self.fleet, self.halt = fleet, threading.Event()
        self.answers: list[SearchAnswer] = []
        self.errors: list[Exception] = []

    def run(self) -> None:
        modes: Any = itertools.cycle(("semantic", "hybrid"))
        queries = (f"{query} {number}" for number, query in enumerate(itertools.cycle(QUERIES)))
        for query, mode in zip(queries if self._fresh else itertools.cycle(QUERIES), modes, strict=False):
            if self.halt.is_set():
                return
            try:
                self.answers.append(self.fleet.client.search(USER, query, mode=mode, limit=5))
            except ScenefleetError as error:
                self.errors.append(error)

    def __enter__(self) -> Searcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.halt.set()
        self.join(60)


def test_a_dry_run_says_how_many_and_how_long_and_changes_nothing(fleet: Fleet) -> None:
    (planned,) = switch_json(fleet, "--to", NEW, "--dry-run").values()
    assert (planned["from"], planned["to"], planned["scenes"]) == (OLD, NEW, VIDEOS * SCENES)
    assert planned["scenes_per_s"] > 0 and planned["eta_s"] > 0
    shown = fleet.command("models", "switch", "text", "--to", NEW, "--dry-run")
    assert f"{VIDEOS * SCENES} scenes" in shown.stdout and "scenes/s" in shown.stdout
    assert opened(fleet) is None and vectors_of(fleet, NEW) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--to", "nothing"), "There is no model 'nothing' in models.yaml"),
        (("--to", "not-searched"), "is a model of kind rerank: name one of kind text"),
        (("--to", OLD), f"{OLD} is the active text model already"),
        (("--activate",), "no switch of the text model is open"),
        (("--to", NEW, "--discard"), "mutually exclusive"),
        (("--hold",), "give --to NAME"),
        (("--to", NEW, "--queries", "/nowhere"), "--queries '/nowhere' is no file"),
    ],
)
def test_what_fails_is_said_in_a_sentence(fleet: Fleet, arguments: tuple[str, ...], sentence: str) -> None:
    said = switch_json(fleet, *arguments, status=1)
    assert said.strip().startswith("scenefleet: ") and sentence in said and "Traceback" not in said
    assert opened(fleet) is None


def test_killed_half_way_it_goes_on_and_a_rollback_restores_the_results(fleet: Fleet) -> None:
    before = found(fleet)
    # The families' processes are held still for a moment, so that the kill comes half-way for certain.
    command = [sys.executable, "-m", "cli", "models", "switch", "text", "--to", NEW, "--hold", "--json"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    watching = subprocess.Popen(command, cwd=ROOT, env=fleet.process_environment(), **quiet)

    def half_way() -> bool:
        view = opened(fleet)
        return view is not None and 0 < view.done < view.total

    eventually(half_way, within_s=120, what="some of the archive is done", every_s=0.02)
    for child in fleet.nodes["text"].children:
        child.send_signal(signal.SIGSTOP)
    view = opened(fleet)
    assert view is not None and view.state == "building" and view.done < view.total
    watching.kill()
    watching.wait()
    for child in fleet.nodes["text"].children:
        child.kill()
    told = switch_json(fleet, "--to", NEW, "--hold")
    assert told["switch"]["state"] == "ready" and told["active"] == OLD
    assert told["switch"]["done"] == VIDEOS * SCENES == vectors_of(fleet, NEW)
    assert 0 <= told["compared"]["overlap"] < 1 and len(told["compared"]["queries"]) == 20
    assert found(fleet) == before

    fleet.client.activate_model("text")
    eventually(lambda: found(fleet) != before, within_s=20, what="the new model is searched")
    after = found(fleet)
    assert all(len(hits) == 20 for hits in after)
    answer = fleet.client.search(USER, QUERIES[0], mode="hybrid")
    used = {retriever.retriever for retriever in answer.coverage.retrievers if retriever.used}
    assert answer.model == NEW and "lexical" in used
    # The old one's results are still there for whoever asks for them.
    by_old = fleet.client.search(USER, QUERIES[0], mode="semantic", limit=20, text_model=OLD)
    assert [(hit.scene_id, hit.score) for hit in by_old.hits] == before[0]

    shown = switch_json(fleet, "--rollback")
    assert (shown["active"], shown["switch"]["state"]) == (OLD, "ready")
    eventually(lambda: found(fleet) == before, within_s=20, what="the old results are back")


def test_while_it_is_open_both_models_are_written(fleet: Fleet, sample: Path, tmp_path: Path) -> None:
    """What is indexed meanwhile is not missing after an activation or a rollback."""
    write_excerpt(sample, tmp_path / "excerpt.mp4")
    fleet.start("asr")
    fleet.wait_ready("asr", within_s=120)
    fleet.process(tmp_path / "excerpt.mp4", "meanwhile")
    fleet.wait_for("meanwhile", within_s=300)
    fleet.stop("asr")
    of_model = "model_id = (SELECT model_id FROM models WHERE name = '{}')"
    old, new = (fleet.of_video("embeddings", "meanwhile", of_model.format(name)) for name in (OLD, NEW))
    assert len(old) == len(new) > 0
    fleet.client.delete("meanwhile", USER)
    eventually(lambda: not fleet.of_video("scenes", "meanwhile"), within_s=60, what="the video is erased")


def test_the_losing_vectors_are_dropped_on_request(fleet: Fleet) -> None:
    before = found(fleet)
    assert "may still request further pages" in switch_json(fleet, "--discard", status=1)
    with pytest.raises(Conflict, match="end it first"):
        fleet.client.switch_model("text", OLD)
    switch_json(fleet, "--discard", "--now")
    ended(fleet)
    assert vectors_of(fleet, NEW) == 0 and vectors_of(fleet, OLD) == VIDEOS * SCENES
    assert not fleet.rows("SELECT 1 FROM lexical_weights")
    assert not fleet.rows(
        "SELECT 1 FROM models JOIN pg_class ON relname = 'ix_embeddings_hnsw_m' || model_id WHERE name = %s",
        NEW,
    )
    assert found(fleet) == before
    with pytest.raises(NotFound):
        fleet.client.rollback_model("text")


def test_a_node_without_the_new_model_leaves_its_work_to_the_other(fleet: Fleet, tmp_path: Path) -> None:
    """Two nodes of one family, as on two machines: one was not given the new weights."""
    specs = load_catalog(Path(fleet.environment["SCENEFLEET_MODELS_FILE"])).specs
    without = [
        spec.model_copy(update={"source": f"path:{tmp_path / 'none'}"}) if spec.name == NEW else spec
        for spec in specs
    ]
    poor = write_catalog(tmp_path / "models.yaml", without)
    fleet.start("text", name="poor", SCENEFLEET_MODELS_FILE=str(poor))
    fleet.wait_ready("poor", within_s=120)
    # With the other one held still, the first work is the poor one's.
    children = fleet.nodes["text"].children
    for child in children:
        child.suspend()
    fleet.client.switch_model("text", NEW)
    eventually(lambda: "job left to other nodes" in fleet.log("poor"), within_s=60, what="a job is left")
    for child in children:
        child.resume()
    told = switch_json(fleet, "--to", NEW, "--hold")
    assert (told["switch"]["state"], vectors_of(fleet, NEW)) == ("ready", VIDEOS * SCENES)
    assert not fleet.rows("SELECT 1 FROM jobs WHERE state = 'failed' OR failures > 0")
    (check,) = [
        check
        for check in json.loads(fleet.command("doctor", "--json").stdout)["checks"]
        if "has no tiny-bge-m3" in check["detail"]
    ]
    assert check["state"] != "ok" and "poor@" in check["detail"]

    with Searcher(fleet, fresh=True) as searcher:
        fleet.client.activate_model("text")
        eventually(
            lambda: sum(answer.model == NEW for answer in searcher.answers) >= 20,
            within_s=60,
            what="searches are answered by the new model",
        )
    assert not searcher.errors, searcher.errors[:3]
    assert all(answer.hits and not answer.degraded for answer in searcher.answers)
    # The poor one has given back what it had taken, or died with it, and has left.
    left = eventually(lambda: fleet.nodes["poor"].process.poll(), within_s=60, what="the poor node leaves")
    assert left == 78, fleet.log("poor")[-2000:]
    texts = [f"sentence {number}" for number in range(40)]
    assert [fleet.client.embed_texts([said]).model for said in texts] == [NEW] * len(texts)

    switch_json(fleet, "--rollback")
    fleet.stop("poor")
    switch_json(fleet, "--discard", "--now")
    ended(fleet)


def test_no_search_fails_or_is_empty_while_the_model_is_switched(fleet: Fleet, tmp_path: Path) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("# what our users look for\n" + "\n".join(QUERIES) + "\n\n")
    with Searcher(fleet) as searcher:
        eventually(lambda: len(searcher.answers) >= 3, within_s=60, what="searches are answered")
        done = fleet.command("models", "switch", "text", "--to", NEW, "--queries", str(queries))
        assert done.returncode == 0, done.stderr
        assert "building" in done.stderr and f"searched by {NEW} now" in done.stderr
        assert all(query in done.stdout for query in QUERIES) and "are the same" in done.stdout
        for step in ("--rollback", "--activate"):
            time.sleep(1.5)
            switch_json(fleet, step)
        time.sleep(1.5)
        # Searches from before the activation have long been answered: none asks for further pages here.
        switch_json(fleet, "--discard", "--now")
        ended(fleet)
        wanted = len(searcher.answers) + 5
        eventually(lambda: len(searcher.answers) >= wanted, within_s=60, what="searches go on")
    assert not searcher.errors, searcher.errors[:3]
    assert all(answer.hits and not answer.degraded for answer in searcher.answers)
    # Every answer is wholly of one model, and both had their time.
    assert {answer.model for answer in searcher.answers} == {OLD, NEW}
    assert [answer.model for answer in searcher.answers[-3:]] == [NEW] * 3
    assert vectors_of(fleet, OLD) == 0 and fleet.client.models("text").active == NEW


def test_a_node_that_starts_later_loads_the_active_model(fleet: Fleet) -> None:
    fleet.stop("text")
    fleet.start("text")
    fleet.wait_ready("text", within_s=120)
    assert f"model={NEW}" in fleet.log("text").rpartition("model loaded")[2]
    answer = fleet.client.search(USER, QUERIES[0], mode="semantic")
    assert answer.hits and answer.model == NEW
    checks = json.loads(fleet.command("doctor", "--json").stdout)["checks"]
    (check,) = [check for check in checks if check["check"] == "searched text model"]
    assert check["state"] == "ok" and NEW in check["detail"] and f"not {OLD}" in check["detail"]
    with pytest.raises(InvalidRequest, match="no text model of this fleet"):
        fleet.client.search(USER, "x", text_model="nothing")
    with pytest.raises(ModelUnavailable):
        fleet.client.embed_texts(["x"], model="pocketsphinx-en-us")
