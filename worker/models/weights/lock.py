"""`models.lock`: what was pulled into MODELS_DIR, by commit and by checksum, recorded at the first pull.

It is in MODELS_DIR, beside the weights; machines that share the folder share the lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Change the recorded models in place, one process at a time; they are written atomically if the block succeeds."""
    with hold(models_dir / f".{FILE}"):
        entries = read(models_dir)
        yield entries
        document = _Document(models=dict(sorted(entries.items())))
        new = models_dir / f".{FILE}.{os.getpid()}"
        new.touch(FILE_MODE)
        with new.open("w", encoding="utf-8") as stream:
            stream.write(document.model_dump_json(indent=1, exclude_none=True) + "\n")
            stream.flush()
            # Otherwise a power failure could leave the name without the content.
            os.fsync(stream.fileno())
        new.replace(models_dir / FILE)


@contextmanager
def hold(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock file, which a killed process releases; `waiting` is called if another process holds it."""
    make_private_folder(path.parent)
    path.touch(FILE_MODE)
    with path.open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield
