"""Filters that plug-ins add: conditions on the rows that their stages wrote for the published runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared import graph
from shared.errors import InvalidRequest
from shared.plugins import find_function


@dataclass(frozen=True)
class Condition:
    """What must hold of ``scenes s``, and its parameters besides ``user_id``."""

    sql: str
    values: tuple[tuple[str, Any], ...]


def read_filters(asked: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The filters of a request: name -> value.

    Raises:
        InvalidRequest: no installed plug-in has such a filter, or it does not take the value.
    """
    filters = {name: found for plugin in graph.PLUGINS.plugins for name, found in plugin.filters.items()}
    conditions = []
    for name, value in sorted(asked.items()):
        if name not in filters:
            known = f"name one of {', '.join(sorted(filters))}" if filters else "no installed plug-in has any"
            raise InvalidRequest(f"filters.{name} is no filter of this fleet: {known}")
        stage = graph.STAGES[filters[name].stage]
        wanted, values = find_function(filters[name].condition)(value)
        wrong = [parameter for parameter in values if not parameter.startswith(f"{name}_")]
        if wrong:
            raise ValueError(f"filter {name} names parameters {wrong}: they begin with {name}_")
        # A scope is a key of cached counts: hashable.
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        # Only the user's rows, and only those of the published run: another run may be in progress.
        conditions.append(
            Condition(
                f"s.scene_id IN (SELECT t.scene_id FROM {stage.tables[0]} t JOIN scenes own USING (scene_id)"
                " JOIN videos v ON v.video_id = own.video_id"
                " JOIN runs r ON r.video_id = v.video_id AND r.run = v.published_run"
                " WHERE t.user_id = :user_id AND v.user_id = :user_id"
                f" AND t.run = CAST(r.stage_runs ->> '{stage.name}' AS integer) AND ({wanted}))",
                tuple(sorted(frozen.items())),
            )
        )
    return tuple(conditions)
