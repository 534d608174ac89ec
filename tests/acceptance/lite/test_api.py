"""The HTTP API over the shared fleet."""

from __future__ import annotations

import httpx

from tests.support.api import Api


def test_health_names_the_ready_families(api: Api) -> None:
    answer = httpx.get(f"{api.url}/api/v1/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert "search" in answer.json()["families"]


def test_an_unknown_video_is_a_problem(api: Api) -> None:
    answer = httpx.get(f"{api.url}/api/v1/videos/none")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "NotFound"
    assert httpx.get(f"{api.url}/api/v1/videos").json() == {"version": 1, "videos": [], "next_after": None}
