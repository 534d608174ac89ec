"""Which stages a fleet can run."""

from __future__ import annotations

from typing import Any

import pytest

from shared.settings import Settings
from worker.models.catalog import load_catalog
from worker.runtime import make_policy


@pytest.mark.parametrize(
    ("flags", "skipped"),
    [
        ({}, {"vision": "unavailable: profile lite has no vision model"}),
        ({"FEATURE_VISION": False}, {"vision": "FEATURE_VISION is off"}),
        ({"FEATURE_FACE": False}, {"face": "FEATURE_FACE is off"}),
        ({"FEATURE_FACE_DETECTION": False}, {"face": "FEATURE_FACE_DETECTION is off"}),
        ({"FEATURE_OCR": False}, {"ocr": "FEATURE_OCR is off"}),
        ({"FEATURE_SEMANTIC_SEARCH": False}, {"text": "FEATURE_SEMANTIC_SEARCH is off"}),
    ],
)
def test_a_stage_that_cannot_run_is_skipped_with_its_reason(
    flags: dict[str, Any], skipped: dict[str, str]
) -> None:
    settings = Settings(**{name.lower(): value for name, value in flags.items()})
    policy = make_policy(settings, load_catalog())
    assert skipped.items() <= policy.skips.items()
    assert set(policy.skips) == {"vision", *skipped}
