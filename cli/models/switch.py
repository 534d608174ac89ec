"""``scenefleet models switch``: another model for the archive, while searches go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from cli import screen
from cli.models import compare
from cli.models.control import Remote
from cli.videos.progress import NARROW_BAR, WIDE_BAR, WIDE_COLUMNS
from cli.videos.requests import acting_user, open_client
from shared.client import Client
from shared.contracts import (
    ModelSamples,
    ModelsState,
    SearchedKind,
    SwitchView,
)
from shared.errors import Conflict, InvalidRequest, Outage
from shared.settings import get_settings
from worker.models.catalog import configured_catalog

POLL_S = 1.0
#: How long one request may take: the first one loads the model.
_PATIENCE_S = 120.0
#: How long a fleet may be silent.
_SILENCE_S = 300.0
#: How many of the user's own scenes both models are tried on.
_SAMPLES = 20


def run(
    kind: str,
    to: str | None,
    acts: Sequence[str],
    *,
    dry_run: bool,
    queries: Path | None,
    hold: bool,
    now: bool,
    user: str | None,
    as_json: bool,
) -> int:
    """What the command's options ask for; returns the exit status.

    Raises:
        InvalidRequest: options that don't go together. Others as the fleet answers.
    """
    if kind not in get_args(SearchedKind):
        raise InvalidRequest(
            f"KIND={kind!r} is not searched by vectors: use {' or '.join(get_args(SearchedKind))}"
        )
    if len(acts) + (to is not None) > 1:
        raise InvalidRequest(
            "--to, --activate, --rollback, --discard and --retry exclude each other: give one"
        )
    if to is None and (dry_run or queries is not None or hold):
        raise InvalidRequest("--dry-run, --queries and --hold say how to switch: give --to NAME, too")
    if now and "discard" not in acts:
        raise InvalidRequest("--now says when to discard: give --discard, too")
    client, searched = open_client(timeout_s=_PATIENCE_S), cast(SearchedKind, kind)
    if to is None:
        if acts:
            _act(client, searched, acts[0], now=now)
        _show_state(client.models(searched), as_json=as_json)
        return 0
    try:
        return _switch(
            client,
            searched,
            to,
            user=acting_user(user),
            queries=queries,
            hold=hold,
            dry_run=dry_run,
            as_json=as_json,
        )
    except KeyboardInterrupt:
        sys.stderr.write(
            "scenefleet: the fleet goes on; give the command again to watch, or --discard to give it up\n"
        )
        raise


def _act(client: Client, kind: SearchedKind, what: str, *, now: bool) -> None:
    if what == "discard":
        client.discard_model(kind, now=now)
    elif what == "activate":
        client.activate_model(kind)
    elif what == "rollback":
        client.rollback_model(kind)
    else:
        client.retry_switch(kind)


def _switch(
    client: Client,
    kind: SearchedKind,
    to: str,
    *,
    user: str,
    queries: Path | None,
    hold: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Build, compare, activate; every step is found done when the command is given again.

    Raises:
        Conflict: jobs failed for good, or a node can't hold both models. Others as the fleet answers.
    """
    say = screen.make_console(stderr=True)
    wanted = None if queries is None else compare.read_queries(queries)
    samples = client.model_samples(kind, user, _SAMPLES)
    state = client.switch_model(kind, to, dry_run=True)
    if state.switch is None or state.switch.to_model != to:
        estimate = try_out(client, kind, to, state, samples, user)
        if dry_run:
            return _show_plan(estimate, as_json=as_json)
        state = client.switch_model(kind, to)
    elif dry_run:
        _show_state(state, as_json=as_json)
        return 0
    state = watch(client, kind, say)
    switch = _require(state)
    compared = compare.compare(client, kind, switch, user, wanted or compare.as_queries(samples))
    activated = switch.state == "activated"
    if not hold and not activated:
        state = client.activate_model(kind)
        activated = True
    if as_json:
        screen.write_json({**state.model_dump(mode="json"), "compared": asdict(compared)})
        return 0
    compare.show(compared, switch, user)
    if activated:
        say.print(f"{kind} is searched by {switch.to_model} now; back to {switch.from_model}: --rollback;"
                  " let its vectors go: --discard", soft_wrap=True)  # fmt: skip
    else:
        say.print(
            f"{kind} is still searched by {switch.from_model}; search by {switch.to_model}: --activate",
            soft_wrap=True,
        )
    return 0


def try_out(
    client: Client, kind: SearchedKind, to: str, state: ModelsState, samples: ModelSamples, user: str
) -> dict[str, Any]:
    """What the switch would take, by letting the new model work on a few of the user's own scenes.

    Raises:
        ModelUnavailable: the family's node can't load it. Conflict: a node can't hold both models at once.
    """
    _refuse_tight(kind, to, state.active)
    speed = None

    def embed() -> int:
        if kind == "text":
            client.embed_texts(samples.texts or ("a few words",), model=to)
            return len(samples.texts)
        client.embed_vision_texts(["a few words"], model=to)
        for first in range(0, len(samples.keyframe_keys), 16):
            client.embed_images(user, samples.keyframe_keys[first : first + 16], model=to)
        return samples.scenes

    # The first call loads the model: not part of its speed.
    embed()
    began = time.monotonic()
    done = embed()
    if done:
        speed = done / (time.monotonic() - began)
    return {
        "kind": kind,
        "from": state.active,
        "to": to,
        "scenes": state.scenes,
        "scenes_per_s": speed,
        "eta_s": state.scenes / speed if speed else None,
    }


def _refuse_tight(kind: SearchedKind, to: str, active: str | None) -> None:
    """Both models have to be in memory at once: else every search would wait for a load."""
    catalog = configured_catalog(get_settings())
    need_mb = sum(catalog.get(name).memory_mb for name in {to, active} if name)
    remote = Remote(get_settings().require("redis_url"))
    names = [name for name in remote.nodes() if name.partition("@")[0] == kind]
    for name, node in remote.describe(names).items():
        for slot in node["slots"]:
            budget_mb = slot.get("budget_mb") or 0
            if budget_mb and budget_mb < need_mb:
                raise Conflict(
                    f"{name} may hold {budget_mb} MB of models, and {active} with {to} need {need_mb} MB: searches would"
                    " wait for loads; raise WORKER_MODEL_MEMORY_MB there"
                )


def watch(client: Client, kind: SearchedKind, console: Console) -> ModelsState:
    """Show the progress until both models' vectors are complete.

    Raises:
        Conflict: jobs were given up. Outage: the fleet does not answer.
    """
    heard_s = time.monotonic()
    told = ""
    width = WIDE_BAR if console.width >= WIDE_COLUMNS else NARROW_BAR
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(
            bar_width=width,
            complete_style="cyan",
            finished_style="green",
            table_column=Column(min_width=width),
        ),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(min_width=4)),
        TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("building", total=1.0, detail="")
        while True:
            try:
                state = client.models(kind)
            except Outage:
                if time.monotonic() - heard_s > _SILENCE_S:
                    raise
                time.sleep(POLL_S)
                continue
            heard_s = time.monotonic()
            switch = _require(state)
            share = 1.0 if switch.state != "building" or not switch.total else switch.done / switch.total
            progress.update(task, completed=min(share, 1.0), detail=_detail(switch))
            line = f"{switch.state} {min(share, 1.0):.0%}"
            if not console.is_terminal and line != told:
                told = line
                console.print(f"{line} {_detail(switch)}".strip(), soft_wrap=True)
            if switch.state in ("ready", "activated"):
                return state
            if switch.state == "discarding":
                raise Conflict(
                    f"vectors of the switch to {switch.to_model} are being discarded: wait for its end"
                )
            if switch.failed:
                raise Conflict(
                    f"{switch.failed} parts of the switch to {switch.to_model} failed ({switch.error}): mend the cause, then"
                    " give the command with --retry"
                )
            time.sleep(POLL_S)


def _detail(switch: SwitchView) -> str:
    if switch.state != "building":
        return f"{switch.done:,} scenes"
    speed = f", {switch.scenes_per_s:.1f}/s" if switch.scenes_per_s else ""
    eta = f", about {duration(switch.eta_s)} left" if switch.eta_s else ""
    return f"{switch.done:,} of {switch.total:,} scenes{speed}{eta}"


def _show_state(state: ModelsState, *, as_json: bool) -> None:
    if as_json:
        screen.write_json(state)
        return
    console = screen.make_console()
    console.print(
        f"{state.kind} is searched by {state.active or 'no model'} ({state.scenes:,} scenes)", soft_wrap=True
    )
    switch = state.switch
    if switch is None:
        return
    console.print(
        f"switch {switch.from_model} -> {switch.to_model}: {switch.state}, {_detail(switch)}", soft_wrap=True
    )
    if switch.failed:
        console.print(Text(f"{switch.failed} parts failed: {switch.error}", style="red"), soft_wrap=True)


def _show_plan(estimate: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        screen.write_json({"dry_run": estimate})
        return 0
    console = screen.make_console()
    console.print(f"{estimate['from']} -> {estimate['to']}: {estimate['scenes']:,} scenes", soft_wrap=True)
    if estimate["scenes_per_s"]:
        console.print(
            f"about {duration(estimate['eta_s'])} at {estimate['scenes_per_s']:.1f} scenes/s, as measured on a few of the"
            " user's scenes; one node, nothing else to do",
            soft_wrap=True,
        )
    else:
        console.print(
            "how long is unknown: the user has no scenes to try it on; name one with --user", soft_wrap=True
        )
    return 0


def _require(state: ModelsState) -> SwitchView:
    if state.switch is None:
        raise Conflict(f"the switch of the {state.kind} model was ended meanwhile")
    return state.switch


def duration(seconds: float) -> str:
    """Roughly, for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
