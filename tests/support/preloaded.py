"""Imported by the fork server: what the programs that it will start would import."""

from __future__ import annotations

import gc
import importlib
import os
from contextlib import suppress

from tests.support.fork_server import LIBRARIES, OURS

# Read when they are imported.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", REMAP_SIGTERM="SIGQUIT")
for _name in LIBRARIES:
    with suppress(ImportError):
        importlib.import_module(_name)
for _name in OURS:
    importlib.import_module(_name)
assert importlib.import_module("shared.settings").get_settings.cache_info().currsize == 0, (
    "a module read settings"
)
# What is here stays: no collection of a program looks at it, or copies its pages.
gc.collect()
gc.freeze()
