"""Reads the catalogue, `models.yaml`: the one place for weights, revisions, dimensions and licences.

Imports no engine: the parent process, the command line and the tests read the catalogue without loading anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import ValidationError

from shared.errors import ModelUnavailable
from shared.graph import PLUGINS
from shared.plugins import find_path
from shared.settings import Settings
from worker.models.spec import Kind, ModelSpec
from worker.models.weights import lock

#: In a checkout the file is beside `worker/`; in an installed package it may be inside `worker/`.
DEFAULT_PATHS = (Path(__file__).parents[2] / "models.yaml", Path(__file__).parents[1] / "models.yaml")


class Catalog:
    """The models known to this installation."""

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        self.specs = tuple(specs)

    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def profiles(self) -> list[str]:
        return sorted({profile for spec in self.specs for profile in spec.profiles})

    def get(self, name: str) -> ModelSpec:
        """The model of that name. Raises: ModelUnavailable."""
        spec = next((spec for spec in self.specs if spec.name == name), None)
        if spec is None:
            raise ModelUnavailable(
                f"There is no model {name!r} in models.yaml; it has {', '.join(self.names())}"
            )
        return spec

    def for_profile(self, profile: str) -> dict[Kind, ModelSpec]:
        """The active model of each kind of a profile; a kind without a model is absent ("unavailable").

        Raises: ModelUnavailable for a profile without models.
        """
        active: dict[Kind, ModelSpec] = {s.kind: s for s in self.specs if profile in s.profiles}
        if not active:
            raise ModelUnavailable(
                f"There is no profile {profile!r} in models.yaml; use one of {', '.join(self.profiles())}"
            )
        return active

    def active(self, settings: Settings) -> dict[Kind, ModelSpec]:
        """The active model of each kind: the profile's, unless a setting names another.

        Raises: ModelUnavailable for an unknown profile or name, or a model of another kind.
        """
        active = self.for_profile(settings.profile)
        chosen: dict[Kind, tuple[str, str]] = {
            "asr": ("ASR_MODEL", settings.asr_model),
            "text": ("TEXT_MODEL", settings.text_model),
            "vision": ("VISION_MODEL_NAME", settings.vision_model_name),
            "face": ("FACE_DETECTOR", settings.face_detector),
            "ocr": ("OCR_MODEL", settings.ocr_model),
        }
        for kind, (variable, name) in chosen.items():
            if name:
                active[kind] = spec = self.get(self._full_name(kind, name))
                if spec.kind != kind:
                    raise ModelUnavailable(
                        f"{variable}={name} is a model of kind {spec.kind}; name one of kind {kind}"
                    )
        if settings.asr_device and "asr" in active:
            active["asr"] = active["asr"].model_copy(update={"device": settings.asr_device})
        return active

    def _full_name(self, kind: Kind, name: str) -> str:
        """The names that a setting may mean: of the catalogue, a size of Whisper, or a repository of the model hub."""
        if name in self.names():
            return name
        if kind == "asr" and f"whisper-{name}" in self.names():
            return f"whisper-{name}"
        repository = (spec.name for spec in self.specs if (spec.kind, spec.source) == (kind, f"hub:{name}"))
        return next(repository, name)


def configured_catalog(settings: Settings) -> Catalog:
    """The catalogue of this installation, with what its lock adds. Raises: ModelUnavailable."""
    return load_catalog(settings.models_file, settings.models_dir)


def load_catalog(path: Path | str | None = None, models_dir: Path | None = None) -> Catalog:
    """Read and check a catalogue file; without `path`, the one that ships with scenefleet. Plug-ins add models to either.

    What `models_dir`'s lock knows is added: the commit that was pulled as revision, and the checksums the catalogue leaves out.

    Raises: ModelUnavailable, in one sentence, when the file is missing or not a valid catalogue.
    """
    chosen = (
        Path(path) if path is not None else next((p for p in DEFAULT_PATHS if p.is_file()), DEFAULT_PATHS[0])
    )
    specs = _read_file(chosen)
    own = {spec.name for spec in specs}
    for plugin in PLUGINS.plugins:
        if plugin.models:
            specs += [spec for spec in _read_file(find_path(plugin.models)) if spec.name not in own]
    _refuse_doubles(chosen, specs)
    locked = lock.read(models_dir) if models_dir is not None else {}
    return Catalog(_with_lock(spec, locked[spec.name]) if spec.name in locked else spec for spec in specs)


def _read_file(chosen: Path) -> list[ModelSpec]:
    try:
        document = yaml.safe_load(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnavailable(f"The model catalogue {chosen} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ModelUnavailable(f"The model catalogue {chosen} is not valid YAML: {reason}") from error
    entries = document.get("models") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ModelUnavailable(f"The model catalogue {chosen} has no list `models`; add at least one model")
    return [_read_entry(chosen, number, entry) for number, entry in enumerate(entries, 1)]


def _with_lock(spec: ModelSpec, entry: lock.Entry) -> ModelSpec:
    recorded = {file: known.sha256 for file, known in entry.files.items() if file in spec.all_files}
    return spec.model_copy(
        update={"sha256": {**recorded, **spec.sha256}, "revision": entry.revision or spec.revision}
    )


def _read_entry(path: Path, number: int, entry: object) -> ModelSpec:
    name = entry.get("name") if isinstance(entry, dict) else None
    try:
        return ModelSpec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "entry"
        raise ModelUnavailable(
            f"Model {name or f'number {number}'} in {path} has a wrong {field} ({first['input']!r}): {first['msg']}"
        ) from error


def _refuse_doubles(path: Path, specs: list[ModelSpec]) -> None:
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise ModelUnavailable(f"Model {name} is {count} times in {path}; keep one")
    known: dict[tuple[str, str], str] = {}
    for spec in specs:
        for profile in spec.profiles:
            other = known.setdefault((profile, spec.kind), spec.name)
            if other != spec.name:
                raise ModelUnavailable(
                    f"Profile {profile} has two models of kind {spec.kind} in {path} ({other}, {spec.name}); keep one"
                )
