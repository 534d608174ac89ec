"""Stages and families of installed packages: a package names a ``Plugin`` in its entry-point group ``scenefleet.plugins``.

``shared.graph.PLUGINS`` has them, read when it is first used. The module that an entry point names imports this one and
``shared.stage``, nothing else of scenefleet. A plug-in that can't be read is left out and recorded: nodes and migrations
refuse to start (``require_all``), ``scenefleet doctor`` shows it, and every other command still works.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import InvalidRequest
from .settings import Settings
from .stage import Stage

GROUP = "scenefleet.plugins"
#: Names of a plug-in and its parts: they become parts of names of tables, queues and SQL parameters.
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Family:
    """A kind of node, and the queues it consumes; its jobs come from the last one."""

    name: str
    queues: tuple[str, ...]
    #: Whether it needs a model of the catalogue.
    has_model: bool = False


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A condition of a search on the rows of a stage."""

    #: The stage whose (first) table is searched.
    stage: str
    #: ``module:function``: takes the request's value and returns a SQL condition on the row ``t`` and its parameters, named
    #: ``<filter>_...``; raises InvalidRequest for an invalid value.
    condition: str


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What a package adds. Every node imports it: functions and modules are named, not imported."""

    #: Also the name of its history of migrations.
    name: str
    stages: tuple[Stage, ...] = ()
    #: Kinds of nodes for its stages' queues; without any they run on existing nodes. A family with a model has one kind of
    #: models, of its own name: ``context.runtime.model(family)`` returns the active one.
    families: tuple[Family, ...] = ()
    #: (kind, provider) -> ``module:Class`` of models (``worker.models.base.Model``), also for existing kinds.
    providers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    #: ``package:file`` with its entries for the catalogue, in the format of ``models.yaml``; empty: none.
    models: str = ""
    #: ``package:folder`` with its Alembic revisions; empty: it has no tables.
    migrations: str = ""
    #: ``module:function``: takes a session, {stage: run} and ids of scenes, and returns {id: JSON} for ``plugins`` in the sidecar.
    sidecar: str = ""
    #: Name in ``filters`` of a search, the plug-in's or one that begins with it and ``_`` -> the filter.
    filters: Mapping[str, Filter] = field(default_factory=dict)
    #: Its distribution, for messages; set when it is read.
    package: str = ""


@dataclass(frozen=True)
class Installed:
    """The plug-ins of this environment."""

    plugins: tuple[Plugin, ...]
    #: Why others can't be used: one sentence each, which names the package.
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
    # A process that has these files under the name `scenefleet` needs no plug-ins, whose imports of `shared` would fail.
    found = entry_points(group=GROUP) if __name__.partition(".")[0] == "shared" else ()
    return sorted(found, key=lambda entry: entry.name)


def read(entries: Iterable[EntryPoint], *, pipeline: Collection[Stage], taken: Collection[str]) -> Installed:
    """The plug-ins that entry points name.

    Args:
        pipeline: the built-in stages, which stages of a plug-in may wait for.
        taken: names of other stages, and of families, that no plug-in may use.
    """
    plugins: dict[str, Plugin] = {}
    broken: list[str] = []
    names = {*taken, *(stage.name for stage in pipeline)}
    for entry in entries:
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        try:
            plugin: Plugin = entry.load()
            if plugin.name in plugins:
                raise ValueError(f"{plugins[plugin.name].package} has a plug-in {plugin.name}, too")
            _check(plugin, pipeline, names)
        except Exception as error:  # noqa: BLE001 - an error of a package must not stop every command
            reason = f"{type(error).__name__}: {error}"
            broken.append(
                f"plug-in {entry.name} of package {package} can't be used ({reason}): mend or uninstall it"
            )
            continue
        plugins[plugin.name] = replace(plugin, package=package)
        names |= {stage.name for stage in plugin.stages} | {family.name for family in plugin.families}
    return Installed(tuple(plugins.values()), tuple(broken))


def _check(plugin: Plugin, pipeline: Collection[Stage], taken: Collection[str]) -> None:
    queues = {queue for family in plugin.families for queue in (family.name, *family.queues)}
    tables = {table for stage in plugin.stages for table in stage.tables}
    stages = {stage.name for stage in plugin.stages}
    for name in {plugin.name, *queues, *plugin.filters, *tables, *stages}:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} does not match {NAME.pattern}")
    for name in [family.name for family in plugin.families] + [stage.name for stage in plugin.stages]:
        if name in taken:
            raise ValueError(f"{name} is there already")
    queues.update(stage.queue for stage in pipeline)
    known = {stage.name for stage in pipeline}
    for stage in plugin.stages:
        if stage.name in known:
            raise ValueError(f"it has two stages {stage.name}")
        if not stage.after or not known.issuperset(stage.after):
            raise ValueError(
                f"stage {stage.name} waits for {stage.after!r}: name stages that are there, such as split"
            )
        if stage.queue not in queues:
            raise ValueError(f"stage {stage.name} has queue {stage.queue!r}, which no family consumes")
        if unknown := [flag for flag in stage.flags if flag not in Settings.model_fields]:
            raise ValueError(
                f"stage {stage.name} has flags={unknown!r}: name fields of shared.settings.Settings"
            )
        if stage.parts in ("scenes", "keyframes") and stage.batch < 1:
            raise ValueError(f"stage {stage.name} has batch={stage.batch}: give a number of {stage.parts}")
        known.add(stage.name)
    with_tables = {stage.name for stage in plugin.stages if stage.tables}
    for name, condition in plugin.filters.items():
        if name != plugin.name and not name.startswith(f"{plugin.name}_"):
            raise ValueError(f"filter {name} does not begin with {plugin.name}_")
        if condition.stage not in with_tables:
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


def find_function(name: str) -> Any:
    """The function that ``module:function`` names; imports the module."""
    return EntryPoint(name="", value=name, group="").load()
