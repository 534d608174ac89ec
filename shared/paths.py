"""Removes the paths of this machine from errors that callers read.

The log of the node has the complete message.
"""

from __future__ import annotations

import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from .settings import Settings, get_settings


def hide_paths(message: str) -> str:
    """Replace every folder of this installation in a message with its purpose."""
    for folder, name in _folders(get_settings()):
        if folder in message:
            message = message.replace(folder, name)
    return message


def without_paths(error: BaseException) -> None:
    """Remove the paths from an error's message, in place."""
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = hide_paths(str(error.filename))
        if error.filename2 is not None:
            error.filename2 = hide_paths(str(error.filename2))
    error.args = tuple(hide_paths(arg) if isinstance(arg, str) else arg for arg in error.args)


@lru_cache(maxsize=4)
def _folders(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Folder and name, the longest first, so that a folder inside another gets its own name."""
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
            # The root folder is part of every path.
            if len(written.parts) > 1:
                found.setdefault(str(written), name)
    return tuple(sorted(found.items(), key=lambda item: -len(item[0])))
