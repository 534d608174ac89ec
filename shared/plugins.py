"""Stages and families of installed packages: a package names a ``Plugin`` in its entry-point group ``scenefleet.plugins``.

``shared.graph.PLUGINS`` has them, read when it is first used. The module that an entry point names imports this one and
``shared.stage``, nothing else of scenefleet. A plug-in that can't be read is left out and recorded: nodes and migrations
refuse to start (``require_all``), ``scenefleet doctor`` shows it, and every other command still works.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import InvalidRequest
from .settings import Settings
from .stage import Stage

GROUP = "scenefleet.plugins"
#: A name of a plug-in, and of what it adds: it becomes part of names of tables, queues and SQL parameters.
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Family:
    """A kind of node: the queues it consumes, the first one first; its jobs come from the last one."""

    name: str
    queues: tuple[str, ...]
    #: Whether the catalogue of models has its model.
    has_model: bool = False


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A condition of a search on what a stage wrote."""

    #: The stage whose (first) table is looked through.
    stage: str
    #: ``module:function``: takes the request's value and returns a SQL condition on the row ``t`` and its parameters, named
    #: ``<filter>_...``; raises InvalidRequest for a value it can't take.
    condition: str


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What a package adds. It is imported by every process: functions and modules are named, not imported."""

    #: The package's own name for it, also of its history of migrations.
    name: str
    stages: tuple[Stage, ...] = ()
    #: Kinds of nodes for its stages' queues; without any they run on the nodes there are. A family with a model has one kind
    #: of models, of its own name: ``context.runtime.model(family)`` loads the active one.
    families: tuple[Family, ...] = ()
    #: (kind, provider) -> ``module:Class`` of models (``worker.models.base.Model``), also for kinds that are there already.
    providers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    #: ``package:file`` of its entries for the catalogue, written as ``models.yaml``; empty: none.
    models: str = ""
    #: ``package:folder`` of its Alembic revisions; empty: it has no tables.
    migrations: str = ""
    #: ``module:function``: takes a session, {stage: run} and ids of scenes and returns {id: JSON} for ``plugins`` in the sidecar.
    sidecar: str = ""
    #: Name in ``filters`` of a search, the plug-in's or one that begins with it and ``_`` -> what it means.
    filters: Mapping[str, Filter] = field(default_factory=dict)
    #: The distribution that brings it, for messages; filled in when it is read.
    package: str = ""


@dataclass(frozen=True)
class Installed:
    """The plug-ins of this environment."""

    plugins: tuple[Plugin, ...]
    #: Why others can't be used: a sentence each, which names the package.
    broken: tuple[str, ...]

    def require_all(self) -> None:
        """Make sure that every installed plug-in can be used.

        Raises:
            InvalidRequest: one can't.
        """
        if self.broken:
            raise InvalidRequest("; ".join(self.broken))


def find() -> Iterable[EntryPoint]:
    """The entry points of this environment's plug-ins."""
    # An API that has these files as `scenefleet` needs no plug-in, and a plug-in's `shared` may not be there.
    found = entry_points(group=GROUP) if __name__.partition(".")[0] == "shared" else ()
    return sorted(found, key=lambda entry: entry.name)


def read(entries: Iterable[EntryPoint], *, pipeline: Collection[Stage], taken: Collection[str]) -> Installed:
    """The plug-ins that entry points name.

    Args:
        pipeline: the stages that those of a plug-in may wait for.
        taken: names of other stages, and of families, that no plug-in may use.
    """
    plugins: dict[str, Plugin] = {}
    broken: list[str] = []
    names = {*taken, *(stage.name for stage in pipeline)}
    queues = {stage.queue for stage in pipeline}
    for entry in entries:
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        try:
            plugin: Plugin = entry.load()
            if plugin.name in plugins:
                raise ValueError(f"{plugins[plugin.name].package} has a plug-in {plugin.name}, too")
            _check(plugin, {stage.name for stage in pipeline}, names, queues)
        except Exception as error:  # noqa: BLE001 - whatever a package raises must not stop every command
            reason = f"{type(error).__name__}: {error}"
            broken.append(
                f"plug-in {entry.name} of package {package} can't be used ({reason}): mend or uninstall it"
            )
            continue
        plugins[plugin.name] = replace(plugin, package=package)
        names.update(stage.name for stage in plugin.stages)
        names.update(family.name for family in plugin.families)
    return Installed(tuple(plugins.values()), tuple(broken))


def _check(
    plugin: Plugin, pipeline: Collection[str], taken: Collection[str], queues: Collection[str]
) -> None:
    own = {queue for family in plugin.families for queue in (family.name, *family.queues)}
    names = {
        plugin.name,
        *own,
        *plugin.filters,
        *(table for stage in plugin.stages for table in stage.tables),
    }
    for name in names | {stage.name for stage in plugin.stages}:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} does not match {NAME.pattern}")
    for name in [family.name for family in plugin.families] + [stage.name for stage in plugin.stages]:
        if name in taken:
            raise ValueError(f"{name} is there already")
    known = set(pipeline)
    for stage in plugin.stages:
        if stage.name in known:
            raise ValueError(f"it has two stages {stage.name}")
        if not stage.after or not known.issuperset(stage.after):
            raise ValueError(
                f"stage {stage.name} waits for {stage.after!r}: name stages that are there, such as split"
            )
        if stage.queue not in {*queues, *own}:
            raise ValueError(f"stage {stage.name} has queue {stage.queue!r}, which no family consumes")
        if unknown := [flag for flag in stage.flags if flag not in Settings.model_fields]:
            raise ValueError(
                f"stage {stage.name} has flags={unknown!r}: name fields of shared.settings.Settings"
            )
        if stage.parts in ("scenes", "keyframes") and stage.batch < 1:
            raise ValueError(f"stage {stage.name} has batch={stage.batch}: give a number of {stage.parts}")
        known.add(stage.name)
    for name, condition in plugin.filters.items():
        if name != plugin.name and not name.startswith(f"{plugin.name}_"):
            raise ValueError(f"filter {name} does not begin with {plugin.name}_")
        if not any(stage.name == condition.stage and stage.tables for stage in plugin.stages):
            raise ValueError(
                f"filter {name} names stage {condition.stage!r}, which is none of its stages with a table"
            )


def find_path(name: str) -> Path:
    """The file or folder that ``package:path`` names, without importing the package.

    Raises:
        InvalidRequest: there is none.
    """
    package, _, inside = name.partition(":")
    found = find_spec(package)
    path = Path(found.origin).parent / inside if found is not None and found.origin else None
    if path is None or not path.exists():
        raise InvalidRequest(f"a plug-in names {name!r}, which is not there: install its package again")
    return path


def find_function(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; imports the module."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
