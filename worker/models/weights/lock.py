"""`models.lock`: what was pulled into MODELS_DIR, by commit and by checksum, recorded at the first pull.

It is in MODELS_DIR, beside the weights; machines that share the folder share the lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import ModelUnavailable
from shared.permissions import FILE_MODE, make_private_folder

FILE = "models.lock"


class LockedFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int
    #: Commit, for a file from a hub's repository that is not the model's own.
    revision: str | None = None


class Entry(BaseModel):
    """The recorded files of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Commit of the model's own repository on the hub; None where it has none.
    revision: str | None = None
    #: File as the catalogue names it -> what was found in it.
    files: dict[str, LockedFile]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    models: dict[str, Entry] = {}


def read(models_dir: Path) -> dict[str, Entry]:
    """Read the recorded models; empty if nothing was pulled.

    Raises: ModelUnavailable when the lock can't be read or is damaged.
    """
    path = models_dir / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(
            f"{path} can't be read ({error}); restore it, or pull the models again"
        ) from error
    try:
        return dict(_Document.model_validate_json(text).models)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ModelUnavailable(
            f"{path} is damaged ({reason}); restore it, or remove it and pull the models again"
        ) from error


@contextmanager
def changing(models_dir: Path) -> Iterator[dict[str, Entry]]:
    """Change the recorded models in place; they are written atomically if the block succeeds.

    Holds a lock on the file meanwhile, so that two pulls don't lose each other's entries.
    """
    make_private_folder(models_dir)
    with _opened(models_dir / f".{FILE}", "a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        entries = read(models_dir)
        yield entries
        _write(models_dir, entries)


def _opened(path: Path, mode: str) -> IO[str]:
    """Open a file for writing; a new one is accessible to this user only."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, FILE_MODE), mode, encoding="utf-8")


def _write(models_dir: Path, entries: Mapping[str, Entry]) -> None:
    path = models_dir / FILE
    ordered = {name: entries[name] for name in sorted(entries)}
    new = path.with_name(f".{FILE}.{os.getpid()}")
    document = _Document(models=ordered).model_dump_json(indent=1, exclude_none=True) + "\n"
    with _opened(new, "w") as stream:
        stream.write(document)
        stream.flush()
        # Otherwise a power failure could leave the name without the content.
        os.fsync(stream.fileno())
    new.replace(path)
