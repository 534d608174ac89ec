"""One fleet of profile full for every module of this folder: the production loaders, on tiny checkpoints in the real formats.

A module has users of its own and leaves every node up as it found it; test_search, the last, stops some. All of the folder
runs in one worker of pytest-xdist (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import graph
from shared.contracts import ScenePage
from tests.checkpoints import (
    adaface,
    bge_m3,
    bge_reranker,
    faster_whisper_scripted,
    siglip,
    whisper_scripted,
    write_catalog,
)
from tests.contracts.candidates import ASSETS
from tests.support.fleet import Fleet, fleet_over, full_profile
from tests.support.services import PostgresServer, RedisServer
from worker.models.catalog import load_catalog
from worker.models.spec import ModelSpec

FAMILIES = ("media", "asr", "text", "vision", "face", "ocr", "housekeeping")
#: Long enough for a busy machine; several tests wait for it.
DEADLINE_S = 3.0
#: The sample as USER indexed it.
VIDEO, USER = "sample", "u1"


@pytest.fixture(scope="package")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """The active models by kind. The vectors of text and vision have one length: to mix them up is no error by itself.

    Without a face detector's weights among the test assets there is no face model.
    """
    weights = tmp_path_factory.mktemp("weights")
    text = bge_m3.build(weights / "bge_m3", hidden=siglip.DIM).model_copy(update={"dim": siglip.DIM})
    builders = (whisper_scripted, bge_reranker, siglip, *((adaface,) if ASSETS else ()))
    made = [builder.build(weights / builder.__name__.rpartition(".")[2]) for builder in builders]
    return {spec.kind: spec for spec in (text, *made, load_catalog().get("rapidocr-ppocrv6-small"))}


@pytest.fixture(scope="package")
def fleet(
    postgres: PostgresServer,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    specs: dict[str, ModelSpec],
    sample: Path,
) -> Iterator[Fleet]:
    """All nodes, ready; the sample is indexed."""
    home = tmp_path_factory.mktemp("full")
    # Not active: chosen by name.
    other = faster_whisper_scripted.build(home / "faster-whisper").model_copy(update={"profiles": ()})
    catalog = write_catalog(home / "models.yaml", [*specs.values(), other])
    # Every search asks the models: what is kept of earlier ones has tests of its own.
    environment = {
        **full_profile(catalog), "SEARCH_DEADLINE_S": str(DEADLINE_S), "EMBEDDING_CACHE_TTL_S": "0", "SEARCH_KEPT_S": "0"
    }  # fmt: skip
    with fleet_over(postgres, redis_server, home, **environment) as found:
        found.start(*(family for family in FAMILIES if family != "face" or ASSETS))
        found.start("search", concurrency=2)
        found.wait_ready(within_s=180)
        found.process(sample, VIDEO, USER)
        status = found.wait_for(VIDEO, within_s=300)
        # A late stage may still wait for what matters more.
        stages = [stage for stage in status.stages if stage.stage not in graph.LATE]
        undone = {stage.stage: stage.error for stage in stages if stage.state != "done"}
        assert set(undone) == (set() if ASSETS else {"face"}), undone
        yield found


@pytest.fixture(scope="package")
def page(fleet: Fleet) -> ScenePage:
    return fleet.client.scenes(VIDEO, USER)
