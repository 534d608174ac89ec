"""What every model keeps to: it checks its files, loads, warms, says what that took, and lets go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_catalog
from tests.contracts.candidates import Candidate, candidates
from worker.models.cache import build
from worker.models.spec import ModelSpec
from worker.models.weights.verify import locate

ENGINES = {"torch", "transformers", "cv2", "dlib", "pocketsphinx", "silero_vad", "whisper", "ctranslate2", "onnxruntime",
           "rapidocr"}  # fmt: skip


@pytest.fixture(scope="module", params=candidates())
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    candidate: Candidate = request.param
    return candidate.spec(tmp_path_factory.mktemp("model"))


class TestEveryModel:
    def test_loads_warms_and_says_what_it_took(self, spec: ModelSpec) -> None:
        model = build(spec)
        assert not model.loaded and model.state.load_s is None
        took_s = model.warm_up()
        state = model.state
        assert state.loaded and state.load_s is not None and state.load_s > 0
        assert state.warm_up_s == took_s > 0
        assert state.memory_bytes is not None and state.memory_bytes < spec.memory_mb << 20
        model.unload()
        assert not model.loaded and model.state.memory_bytes is None

    def test_needs_no_other_file_than_those_it_checks(self, spec: ModelSpec, tmp_path: Path) -> None:
        for file in spec.all_files:
            if not file.startswith(("package:", "hub:")):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).symlink_to(locate(spec, file))
        model = build(spec.model_copy(update={"source": f"path:{tmp_path}"}))
        model.warm_up()
        model.unload()

    def test_loads_in_a_child_of_a_parent_without_engines(self, spec: ModelSpec, tmp_path: Path) -> None:
        # A hang is what using torch before the fork would give: the time limit turns it into a failure.
        catalog = write_catalog(tmp_path / "models.yaml", [spec.model_copy(update={"preload": True})])
        script = f"""
import os, sys
from worker.models.catalog import load_catalog
from worker.models.cache import ModelCache
catalog = load_catalog({str(catalog)!r})
model_cache = ModelCache(catalog, catalog.for_profile({spec.profiles[0]!r}), [{spec.family!r}])
model_cache.states()
engines = {ENGINES} & set(sys.modules)
assert not engines, engines
child = os.fork()
if not child:
    try:
        model_cache.preload()
        os._exit(0 if any(state["loaded"] for state in model_cache.states()) else 3)
    finally:
        os._exit(4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
