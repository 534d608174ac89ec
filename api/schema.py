"""Describes the API as it is: the OpenAPI document, with the definitions of bodies and problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.bodies import SCHEMAS
from api.problems import Problem


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
