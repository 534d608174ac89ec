"""What models there are: reads `models.yaml`, the one place for weights, revisions, dimensions and licences.

Imports no engine: the parent process, the command line and the tests read the catalogue without loading anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.errors import ModelUnavailable

Family = Literal["asr", "text", "vision", "face"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

#: In a checkout the file lies beside `worker/`; in an installed package it may lie inside `worker/`.
DEFAULT_PATHS = (Path(__file__).parents[2] / "models.yaml", Path(__file__).parents[1] / "models.yaml")


class ModelSpec(BaseModel):
    """One model of the catalogue: everything about it that is a decision, and nothing measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Family
    #: Which class of the family runs it (`worker.models.shelf.PROVIDERS`).
    provider: str
    #: Folder of the weights: `package:<top-level module>/<folder>`, `models:<folder under MODELS_DIR>` or `path:<folder>`.
    source: str = Field(pattern=r"^(package|models|path):.+$")
    revision: str = Field(min_length=1)
    #: Length of its vectors, and the distance they are compared by; None for a model that makes no vectors.
    dim: int | None = Field(default=None, gt=0)
    metric: Literal["cosine", "l2"] | None = None
    licence: str
    #: Resident memory the process grows by when it is loaded, warm; measured, for the memory budget.
    memory_mb: int = Field(gt=0)
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    #: Most items computed at once.
    batch: int = Field(default=1, gt=0)
    warmup_samples: int = Field(default=1, ge=0)
    #: Whether a worker of the family loads it before taking work.
    preload: bool = True
    #: File of the weights -> its sha256. Relative to `source`, or a full `package:...` place of its own.
    sha256: dict[str, Sha256] = Field(min_length=1)
    profiles: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _vectors_have_a_metric(self) -> ModelSpec:
        if (self.dim is None) != (self.metric is None):
            raise ValueError("dim and metric go together: give both or neither")
        return self


class Catalog:
    """The models known to this installation."""

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        self.specs = tuple(specs)

    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def profiles(self) -> list[str]:
        return sorted({profile for spec in self.specs for profile in spec.profiles})

    def get(self, name: str) -> ModelSpec:
        """The model of that name.

        Raises: ModelUnavailable.
        """
        for spec in self.specs:
            if spec.name == name:
                return spec
        raise ModelUnavailable(
            f"There is no model {name!r} in models.yaml; it has {', '.join(self.names())}."
        )

    def for_profile(self, profile: str) -> dict[Family, ModelSpec]:
        """The active model of each family; a family the profile has no model for is absent ("unavailable").

        Raises: ModelUnavailable for a profile no model belongs to.
        """
        active: dict[Family, ModelSpec] = {s.family: s for s in self.specs if profile in s.profiles}
        if not active:
            raise ModelUnavailable(
                f"There is no profile {profile!r} in models.yaml; use one of {', '.join(self.profiles())}."
            )
        return active


def load_catalog(path: Path | str | None = None) -> Catalog:
    """Read and check a catalogue file; without `path`, the one that ships with scenefleet.

    Raises: ModelUnavailable, in one sentence, when the file is missing or not a valid catalogue.
    """
    chosen = (
        Path(path) if path is not None else next((p for p in DEFAULT_PATHS if p.is_file()), DEFAULT_PATHS[0])
    )
    try:
        document = yaml.safe_load(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnavailable(f"The model catalogue {chosen} can't be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ModelUnavailable(f"The model catalogue {chosen} is not valid YAML: {reason}.") from error
    entries = document.get("models") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ModelUnavailable(f"The model catalogue {chosen} has no list `models`; add at least one model.")
    specs = [_read_entry(chosen, index, entry) for index, entry in enumerate(entries)]
    _refuse_doubles(chosen, specs)
    return Catalog(specs)


def _read_entry(path: Path, index: int, entry: object) -> ModelSpec:
    name = entry.get("name", f"number {index + 1}") if isinstance(entry, dict) else f"number {index + 1}"
    try:
        return ModelSpec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "entry"
        raise ModelUnavailable(
            f"Model {name} in {path} has a wrong {field} ({first['input']!r}): {first['msg']}."
        ) from error


def _refuse_doubles(path: Path, specs: list[ModelSpec]) -> None:
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise ModelUnavailable(f"Model {name} stands {count} times in {path}; keep one.")
    seats: dict[tuple[str, str], str] = {}
    for spec in specs:
        for profile in spec.profiles:
            other = seats.setdefault((profile, spec.family), spec.name)
            if other != spec.name:
                raise ModelUnavailable(
                    f"Profile {profile} has two models of family {spec.family} in {path} ({other}, {spec.name}); keep one."
                )
