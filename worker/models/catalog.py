"""What models there are: reads `models.yaml`, the one place for weights, revisions, dimensions and licences.

Imports no engine: the parent process, the command line and the tests read the catalogue without loading anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.errors import ModelUnavailable
from shared.settings import Settings
from worker.models import lock

Family = Literal["asr", "text", "vision", "face", "ocr"]
#: What a model is for. A family's worker may hold several kinds; each profile has at most one model of a kind.
Kind = Literal["asr", "text", "rerank", "vision", "face", "ocr"]
KINDS: dict[Family, tuple[Kind, ...]] = {
    "asr": ("asr",),
    "text": ("text", "rerank"),
    "vision": ("vision",),
    "face": ("face",),
    "ocr": ("ocr",),
}
#: What stands for the sha256 of a file that nobody states one for.
UNKNOWN = "unknown"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

#: In a checkout the file lies beside `worker/`; in an installed package it may lie inside `worker/`.
DEFAULT_PATHS = (Path(__file__).parents[2] / "models.yaml", Path(__file__).parents[1] / "models.yaml")


class ModelSpec(BaseModel):
    """One model of the catalogue: everything about it that is a decision, and nothing measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Family
    #: Default: the one named as the family.
    kind: Kind
    #: Which class of the kind runs it (`worker.models.shelf.PROVIDERS`).
    provider: str
    #: Where its files come from: `package:<top-level module>/<folder>`, `hub:<owner>/<repository>`, `url:<folder's URL>`,
    #: `user:` (whoever runs it puts them into MODELS_DIR/<name>) or `path:<folder>`.
    source: str = Field(pattern=r"^((package|path):.+|hub:[\w.-]+/[\w.-]+|url:https?://.+|user:)$")
    #: Tells its outputs from another release's. For `hub:` the branch, tag or commit to pull; the commit is what counts
    #: once it is pulled (`models.lock`).
    revision: str = Field(min_length=1)
    #: Length of its vectors, and the distance they are compared by; None for a model that makes no vectors.
    dim: int | None = Field(default=None, gt=0)
    metric: Literal["cosine", "l2"] | None = None
    licence: str
    #: Memory it takes, loaded and warm, on the device it is meant for; for the memory budget.
    memory_mb: int = Field(gt=0)
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "float32"
    #: Most items computed at once.
    batch: int = Field(default=1, gt=0)
    warmup_samples: int = Field(default=1, ge=0)
    #: Whether a worker of the family loads it before taking work.
    preload: bool = True
    #: What its provider can be told; each provider names and checks its own.
    options: dict[str, Any] = Field(default_factory=dict)
    #: Files of the weights. Relative to `source`, or a full place of their own (`package:...`,
    #: `hub:owner/repo/file`, `hub:owner/repo@commit/file`).
    files: tuple[str, ...] = ()
    #: File -> its sha256, where we computed it or its publisher states it. A file named here need not be repeated in
    #: `files`. UNKNOWN, as leaving it out, says that none is stated: the first pull shows what came, asks whether to trust
    #: it, and records it in `models.lock`.
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    #: Profiles it is the active model of its kind in; none: only when it is asked for by name.
    profiles: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _kind_of_family(cls, values: Any) -> Any:
        if isinstance(values, dict) and "kind" not in values and "family" in values:
            return {**values, "kind": values["family"]}
        return values

    @model_validator(mode="before")
    @classmethod
    def _without_unknown(cls, values: Any) -> Any:
        """A file of unknown sum is one of `files` from here on."""
        if not isinstance(values, dict) or not isinstance(values.get("sha256"), dict):
            return values
        unknown = [file for file, sha256 in values["sha256"].items() if sha256 == UNKNOWN]
        if not unknown:
            return values
        stated = {file: sha256 for file, sha256 in values["sha256"].items() if sha256 != UNKNOWN}
        return {**values, "sha256": stated, "files": [*values.get("files", ()), *unknown]}

    @model_validator(mode="after")
    def _is_consistent(self) -> ModelSpec:
        if (self.dim is None) != (self.metric is None):
            raise ValueError("dim and metric go together: give both or neither")
        if self.kind not in KINDS[self.family]:
            raise ValueError(
                f"family {self.family} has no kind {self.kind}: use {', '.join(KINDS[self.family])}"
            )
        if not self.all_files:
            raise ValueError("files is empty: name at least one file of the weights")
        for file in self.all_files:
            _refuse_unsafe(file)
        # A file from another repository lies beside the model's own, under its last name.
        homes = Counter(
            PurePosixPath(file).name if file.startswith("hub:") else file for file in self.all_files
        )
        if doubles := [home for home, count in homes.items() if count > 1]:
            raise ValueError(f"two files would lie at {doubles[0]!r}: keep one")
        if not self.is_pulled and not self.source.startswith("user:") and set(self.files) - set(self.sha256):
            raise ValueError("a file that is not pulled needs its sha256 here")
        return self

    @property
    def all_files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.files, *self.sha256)))

    @property
    def is_pulled(self) -> bool:
        """Whether any file comes from elsewhere, by `scenefleet models pull`."""
        places = (self.source, *self.files, *self.sha256)
        return any(place.startswith(("hub:", "url:")) for place in places)


#: A file with a place of its own: inside a package, or in a repository of the hub.
_OWN_PLACE = re.compile(
    r"package:[\w.]+/(?P<inside>.+)|hub:[\w.-]+/[\w.-]+(@[0-9a-f]{40})?/(?P<in_repository>.+)"
)


def _refuse_unsafe(file: str) -> None:
    """A file must lie where its source says, not above or beside it, and hold no code.

    Raises: ValueError.
    """
    own_place = file.startswith(("package:", "hub:"))
    match = _OWN_PLACE.fullmatch(file)
    if own_place and match is None:
        raise ValueError(
            f"{file!r} names no file: use package:<module>/<file> or hub:<owner>/<repository>/<file>"
        )
    path = PurePosixPath(match["inside"] or match["in_repository"] if match else file)
    if path.is_absolute() or ".." in path.parts or "\0" in file or path.name == "":
        raise ValueError(f"{file!r} leads out of the model's folder: name a file inside it")
    if path.suffix == ".py":
        raise ValueError(f"{file!r} is code; a model's files are weights and configuration")


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

    def for_profile(self, profile: str) -> dict[Kind, ModelSpec]:
        """The active model of each kind; a kind the profile has no model for is absent ("unavailable").

        Raises: ModelUnavailable for a profile no model belongs to.
        """
        active: dict[Kind, ModelSpec] = {s.kind: s for s in self.specs if profile in s.profiles}
        if not active:
            raise ModelUnavailable(
                f"There is no profile {profile!r} in models.yaml; use one of {', '.join(self.profiles())}."
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
            if not name:
                continue
            spec = self.get(self._full_name(kind, name))
            if spec.kind != kind:
                raise ModelUnavailable(
                    f"{variable}={name} is a model of kind {spec.kind}; name one of kind {kind}."
                )
            active[kind] = spec
        if settings.asr_device and "asr" in active:
            active["asr"] = active["asr"].model_copy(update={"device": settings.asr_device})
        return active

    def _full_name(self, kind: Kind, name: str) -> str:
        """What a setting means: a name of the catalogue, a size of Whisper, or a repository of the model hub."""
        if name not in self.names():
            if kind == "asr" and f"whisper-{name}" in self.names():
                return f"whisper-{name}"
            for spec in self.specs:
                if spec.kind == kind and spec.source == f"hub:{name}":
                    return spec.name
        return name


def configured_catalog(settings: Settings) -> Catalog:
    """The catalogue of this installation, with what was recorded of the weights it has pulled.

    Raises: ModelUnavailable.
    """
    return load_catalog(settings.models_file, settings.models_dir)


def load_catalog(path: Path | str | None = None, models_dir: Path | None = None) -> Catalog:
    """Read and check a catalogue file; without `path`, the one that ships with scenefleet.

    What `models_dir`'s lock knows is added: the commit that was pulled as revision, and the sums the catalogue leaves out.

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
    locked = lock.read(models_dir) if models_dir is not None else {}
    return Catalog(_with_lock(spec, locked.get(spec.name)) for spec in specs)


def _with_lock(spec: ModelSpec, entry: lock.Entry | None) -> ModelSpec:
    if entry is None:
        return spec
    recorded = {file: known.sha256 for file, known in entry.files.items() if file in spec.all_files}
    return spec.model_copy(
        update={"sha256": {**recorded, **spec.sha256}, "revision": entry.revision or spec.revision}
    )


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
            other = seats.setdefault((profile, spec.kind), spec.name)
            if other != spec.name:
                raise ModelUnavailable(
                    f"Profile {profile} has two models of kind {spec.kind} in {path} ({other}, {spec.name}); keep one."
                )
