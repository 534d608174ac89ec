"""Generated parts of the documents are up to date; `make docs` checks their links."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cli.models.files import markdown_table
from shared.settings import settings_table
from shared.sidecar import Sidecar
from worker.models.catalog import load_catalog

ROOT = Path(__file__).parents[2]


def test_the_table_of_settings_is_current() -> None:
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text(), "run: python -m shared.settings"


def test_the_table_of_models_is_current() -> None:
    assert markdown_table(load_catalog()) in (ROOT / "docs" / "models.md").read_text(), (
        "run: python -m cli.models.files"
    )


def test_the_provider_walked_through_is_the_real_one() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    assert shown in (ROOT / "worker" / "models" / "providers" / "rerank_bge.py").read_text()


def test_the_schema_of_sidecars_is_current() -> None:
    written = json.loads((ROOT / "docs" / "sidecar.schema.json").read_text())
    written.pop("$schema")
    assert written == Sidecar.model_json_schema(), "run: python -m shared.sidecar"
