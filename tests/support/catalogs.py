"""A catalogue of the lite models in which some have weights of their own, copied: a test may damage those."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoints import write_catalog
from worker.models.catalog import load_catalog
from worker.models.spec import ModelSpec
from worker.models.weights.verify import locate


@dataclass(frozen=True)
class OwnCatalog:
    """The catalogue file and the folders of the copies, by the models' names."""

    path: Path
    folders: dict[str, Path]
    specs: dict[str, ModelSpec]

    def change(self, name: str, **fields: Any) -> None:
        """Write the catalogue with some fields of one entry changed; with none, as it was at first."""
        changed = {**self.specs, name: self.specs[name].model_copy(update=fields)}
        write_catalog(self.path, changed.values())


@contextmanager
def own_catalog(folder: Path, *names: str, **more: ModelSpec) -> Iterator[OwnCatalog]:
    """The lite models, `names` copied below `folder`; `more` are entries beside them. The copies go at the end."""
    specs = {spec.name: spec for spec in load_catalog().specs if "lite" in spec.profiles}
    folders = {name: folder / name for name in names}
    try:
        for name, copy in folders.items():
            spec = specs[name]
            for file in spec.all_files:
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(locate(spec, file), copy / file)
            specs[name] = spec.model_copy(update={"source": f"path:{copy}"})
        specs |= {spec.name: spec for spec in more.values()}
        yield OwnCatalog(write_catalog(folder / "models.yaml", specs.values()), folders, specs)
    finally:
        for copy in folders.values():
            shutil.rmtree(copy, ignore_errors=True)
