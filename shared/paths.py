"""Keeps the places of this machine out of what callers are told: an error may say what is missing, not where it lay.

The log of the node has the whole message.
"""

from __future__ import annotations

import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from .settings import Settings, get_settings


def hide_paths(message: str) -> str:
    """The message with every folder of this installation replaced by what it is for."""
    for folder, name in _folders(get_settings()):
        if folder in message:
            message = message.replace(folder, name)
    return message


def without_paths(error: BaseException) -> None:
    """Take the places out of an error, which stays what it is."""
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = hide_paths(str(error.filename))
        if error.filename2 is not None:
            error.filename2 = hide_paths(str(error.filename2))
    error.args = tuple(hide_paths(arg) if isinstance(arg, str) else arg for arg in error.args)


@lru_cache(maxsize=4)
def _folders(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Folder and name, the longest first, so that one inside another goes by its own name."""
    named: list[tuple[Path | None, str]] = [
        (settings.models_dir, "MODELS_DIR"),
        (settings.storage_dir, "STORAGE_ROOT"),
        (settings.home, "SCENEFLEET_HOME"),
        (settings.hf_home, "HF_HOME"),
        (settings.models_file, "SCENEFLEET_MODELS_FILE"),
        (settings.vision_labels, "VISION_LABELS"),
        (Path(__file__).parents[1], "<scenefleet>"),
        (Path(tempfile.gettempdir()), "<temporary folder>"),
        (Path(sys.prefix), "<python>"),
        (Path(sys.base_prefix), "<python>"),
        (Path.home(), "<home>"),
    ]
    found: dict[str, str] = {}
    for path, name in named:
        if path is None:
            continue
        for written in (path, path.resolve()):
            # The root folder is in every path, and tells nothing.
            if len(written.parts) > 1:
                found.setdefault(str(written), name)
    return tuple(sorted(found.items(), key=lambda item: -len(item[0])))
