"""Imported by the fork server: the libraries of the programs it will start."""

from __future__ import annotations

import gc
import importlib
import os
from contextlib import suppress

from tests.support.fork_server import LIBRARIES

# Read when they are imported.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", REMAP_SIGTERM="SIGQUIT")
for _name in LIBRARIES:
    with suppress(ImportError):
        importlib.import_module(_name)
# What is here stays: no collection of a program looks at it, or copies its pages.
gc.collect()
gc.freeze()
