"""Benchmarks: ratios measured side by side in one run. ``make bench`` runs them all."""

from __future__ import annotations

from pathlib import Path

#: Where results are written, as JSON; not committed.
OUT = Path(__file__).parent / "out"
