"""Values for .env: those a deployment runs with, and one for every documented setting that is not its default."""

from __future__ import annotations

import re
import secrets
from typing import Any, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from local.servers.ports import find_free_port
from shared.settings import Settings
from tests.deploy.engine import ROOT

#: What Compose sets itself (.env.example says so), and what `scenefleet node` does.
FIXED = {"POSTGRES_URL", "REDIS_URL", "SCENEFLEET_HOME", "MODELS_DIR", "HF_HOME", "SCENEFLEET_FAMILY"}
#: What nodes must not get.
ADMINISTRATION = {"POSTGRES_ADMIN_URL"}
ADMINISTRATORS = (
    "POSTGRES_SUPERUSER_PASSWORD",
    "MINIO_ROOT_USER",
    "MINIO_ROOT_PASSWORD",
    "FLOWER_USER",
    "FLOWER_PASSWORD",
)


def deployment_values(image: str) -> dict[str, str]:
    """What .env.example asks for, ports that are free here, and limits that a small machine has."""
    names = re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.M)
    ports = {name: str(find_free_port()) for name in ("REDIS_PORT", "MINIO_PORT", "FLOWER_PORT", "API_PORT")}
    return {
        **{name: secrets.token_hex(12) for name in names},
        **ports,
        "COMPOSE_PROFILES": "cpu",
        "SCENEFLEET_IMAGE": image,
        "SCENEFLEET_PROFILE": "lite",
        "SCENEFLEET_MODEL_THREADS": "1",
        "STORAGE_PUBLIC_ENDPOINT": f"localhost:{ports['MINIO_PORT']}",
        "SOFT_SHUTDOWN_S": "12",
        "MEDIA_MEMORY": "3g",
        "ASR_MEMORY": "3g",
        "TEXT_MEMORY": "3g",
    }


def documented_settings() -> list[str]:
    """The names in docs/settings.md."""
    return re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "settings.md").read_text(), re.M)


def other_values() -> dict[str, str]:
    """For every documented setting that .env can give, a valid value that is not the default."""
    fields = {(field.alias or name).upper(): field for name, field in Settings.model_fields.items()}
    return {
        name: other_value(name, fields[name])
        for name in documented_settings()
        if name not in FIXED | ADMINISTRATION
    }


def other_value(name: str, field: FieldInfo) -> str:
    """The first candidate that the settings accept and that changes something."""
    default = field.default
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    candidates: list[Any]
    if isinstance(default, bool):
        candidates = [str(not default).lower()]
    elif isinstance(default, int | float):
        candidates = [default + 1, default * 0.9, default / 2, default - 1, 1]
        candidates = [int(value) if isinstance(default, int) else value for value in candidates]
    else:
        choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
        # One of its own for each, so that none is taken for another's.
        made = (
            f"other-{name.lower()}",
            f"/tmp/{name.lower()}",
            f"https://{name.lower().replace('_', '-')}.example",
            "media:2,asr,text",
            "alice=2,bob=0.5",
            "amqp://other:other@rabbitmq:5672/",
            "0",
        )
        candidates = [*reversed(choices), *made]
    for candidate in candidates:
        if str(candidate) == str(default):
            continue
        try:
            Settings.model_validate({field.alias or name.lower(): candidate})
        except ValidationError:
            continue
        return str(candidate)
    raise AssertionError(f"no other value of {name} is known")
