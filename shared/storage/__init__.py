"""Objects by bucket and key, on a folder or on an S3 server, behind one interface.

Videos, frames, audio and sidecars travel between tasks as keys, never inside messages. This package exists so that
no other module knows which backend holds the bytes; ``docs/storage.md`` explains the layout. A backend is imported
only when it is opened: importing this package loads neither ``minio`` nor ``urllib3``.
"""

from __future__ import annotations

from ..settings import Settings
from .incoming import Appender, Incoming
from .keys import (
    attempt_prefix,
    check_key,
    check_prefix,
    photo_key,
    require_prefix,
    sidecar_key,
    upload_key,
)
from .objects import Bucket, ObjectInfo, ObjectStat, Storage, StorageConfig

__all__ = [
    "Appender",
    "Bucket",
    "Incoming",
    "ObjectInfo",
    "ObjectStat",
    "Storage",
    "StorageConfig",
    "attempt_prefix",
    "check_key",
    "check_prefix",
    "configured_storage",
    "open_storage",
    "photo_key",
    "require_prefix",
    "sidecar_key",
    "upload_key",
]


def open_storage(config: StorageConfig) -> Storage:
    """The storage that ``config`` describes. Opens no file and no connection yet.

    Raises:
        InvalidRequest: a value of ``config`` is missing or not acceptable; names the setting.
    """
    if config.backend == "local":
        from .local import LocalStorage

        return LocalStorage(config)
    from .minio import MinioStorage

    return MinioStorage(config)


def configured_storage(settings: Settings) -> Storage:
    """The storage the settings describe.

    Raises:
        InvalidRequest: a setting is missing or not acceptable.
    """
    given = {name.removeprefix("storage_"): value for name, value in settings if name.startswith("storage_")}
    return open_storage(StorageConfig.model_validate({**given, "root": settings.storage_dir}))
