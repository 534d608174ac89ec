"""Describes the API as it is: ``python -m api.openapi`` writes docs/openapi.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.bodies import SCHEMAS
from api.problems import Problem

FILE = Path("docs/openapi.json")


def describe(app: FastAPI) -> None:
    """Let an application describe itself with the definitions of its bodies and problems."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in {**SCHEMAS, "Problem": Problem.model_json_schema()}.items():
                schemas.setdefault(name, schema)
            found["components"]["schemas"] = dict(sorted(schemas.items()))
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def main() -> None:
    """Write docs/openapi.json."""
    FILE.write_text(text())


def text() -> str:
    """The OpenAPI file of an API without configuration."""
    from api.app import create_app
    from shared.settings import Settings

    # Addresses that nothing is asked at.
    settings = Settings(redis_url="redis://127.0.0.1:1/0", storage_root=Path("build/none"))
    return json.dumps(create_app(settings).openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
