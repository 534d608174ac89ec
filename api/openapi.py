"""Writes docs/openapi.json: ``python -m api.openapi``."""

from __future__ import annotations

import json
from pathlib import Path

from api.app import create_app
from shared.settings import Settings

FILE = Path("docs/openapi.json")


def main() -> None:
    """Write docs/openapi.json."""
    FILE.write_text(text())


def text() -> str:
    """The OpenAPI file of an API without configuration."""
    # Addresses that nothing is asked at.
    settings = Settings(redis_url="redis://127.0.0.1:1/0", storage_root=Path("build/none"))
    return json.dumps(create_app(settings).openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
