"""``scenefleet models switch``: another model for the archive, while searches go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column
from rich.text import Text

from cli import screen
from cli.connection import connect
from cli.models import compare
from cli.models.control import Remote
from shared.client import Client
from shared.contracts import ModelSamples, ModelsState, SearchedKind, SwitchView
from shared.errors import Conflict, InvalidRequest, Outage
from shared.settings import get_settings
from worker.models.catalog import configured_catalog

POLL_S = 1.0
#: How long one request may take: the first one loads the model.
_TIMEOUT_S = 120.0
#: Longest time without an answer.
_SILENCE_S = 300.0
#: How many of the user's own scenes both models are tried on.
_SAMPLES = 20


def run(
    kind: str, to: str | None, acts: Sequence[str], *, now: bool, user: str | None, as_json: bool, **how: Any
) -> None:
    """What the command's options ask for; ``how``: ``queries``, ``hold`` and ``dry_run``.

    Raises:
        InvalidRequest: options that don't go together. Others as the fleet answers.
    """
    if kind not in get_args(SearchedKind):
        kinds = " or ".join(get_args(SearchedKind))
        raise InvalidRequest(f"KIND={kind!r} is not searched by vectors: use {kinds}")
    if len(acts) + (to is not None) > 1:
        raise InvalidRequest(
            "--to, --activate, --rollback, --discard and --retry are mutually exclusive: give one"
        )
    if to is None and any(how.values()):
        raise InvalidRequest("--dry-run, --queries and --hold say how to switch: give --to NAME, too")
    if now and "discard" not in acts:
        raise InvalidRequest("--now says when to discard: give --discard, too")
    client, owner = connect(user, timeout_s=_TIMEOUT_S)
    searched = cast(SearchedKind, kind)
    if to is None:
        actions: dict[str, Callable[[SearchedKind], ModelsState]] = {
            "activate": client.activate_model,
            "rollback": client.rollback_model,
            "retry": client.retry_switch,
            "discard": partial(client.discard_model, now=now),
        }
        for act in acts:
            actions[act](searched)
        _show_state(client.models(searched), as_json=as_json)
        return
    try:
        _switch(client, searched, to, owner, as_json=as_json, **how)
    except KeyboardInterrupt:
        sys.stderr.write(
            "scenefleet: the fleet goes on; give the command again to watch, or --discard to give it up\n"
        )
        raise


def _switch(
    client: Client,
    kind: SearchedKind,
    to: str,
    user: str,
    *,
    queries: Path | None,
    hold: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build, compare, activate; every step is found done when the command is given again.

    Raises:
        Conflict: jobs failed for good, or a node can't hold both models. Others as the fleet answers.
    """
    wanted = None if queries is None else compare.read_queries(queries)
    samples = client.model_samples(kind, user, _SAMPLES)
    state = client.switch_model(kind, to, dry_run=True)
    if state.switch is None or state.switch.to_model != to:
        estimate = try_out(client, kind, to, state, samples, user)
        if dry_run:
            _show_plan(estimate, as_json=as_json)
            return
        state = client.switch_model(kind, to)
    elif dry_run:
        _show_state(state, as_json=as_json)
        return
    state = watch(client, kind, screen.make_console(stderr=True))
    switch = _require(state)
    compared = compare.compare(client, kind, switch, user, wanted or compare.as_queries(samples))
    activated = switch.state == "activated"
    if not hold and not activated:
        state = client.activate_model(kind)
        activated = True
    if as_json:
        screen.write_json({**state.model_dump(mode="json"), "compared": compared})
        return
    compare.show(compared, switch, user)
    if activated:
        choices = f"back to {switch.from_model}: --rollback; let its vectors go: --discard"
        screen.tell(f"{kind} is searched by {switch.to_model} now; {choices}")
    else:
        choices = f"search by {switch.to_model}: --activate"
        screen.tell(f"{kind} is still searched by {switch.from_model}; {choices}")


def try_out(
    client: Client, kind: SearchedKind, to: str, state: ModelsState, samples: ModelSamples, user: str
) -> dict[str, Any]:
    """What the switch would take, by letting the new model work on a few of the user's own scenes."""
    _refuse_tight(kind, to, state.active)

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
    speed = done / (time.monotonic() - began) if done else None
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
    with Progress(
        TextColumn("{task.description}"),
        screen.make_bar(console),
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
            building = switch.state == "building" and switch.total
            share = min(switch.done / switch.total, 1.0) if building else 1.0
            progress.update(task, completed=share, detail=_detail(switch))
            line = f"{switch.state} {share:.0%}"
            if not console.is_terminal and line != told:
                told = line
                console.print(f"{line} {_detail(switch)}".strip(), soft_wrap=True)
            if switch.state in ("ready", "activated"):
                return state
            if switch.state == "discarding":
                ended = f"vectors of the switch to {switch.to_model} are being discarded"
                raise Conflict(f"{ended}: wait for its end")
            if switch.failed:
                ended = f"{switch.failed} parts of the switch to {switch.to_model} failed ({switch.error})"
                raise Conflict(f"{ended}: mend the cause, then give the command with --retry")
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
    lines = [Text(f"{state.kind} is searched by {state.active or 'no model'} ({state.scenes:,} scenes)")]
    if switch := state.switch:
        lines.append(
            Text(f"switch {switch.from_model} -> {switch.to_model}: {switch.state}, {_detail(switch)}")
        )
        if switch.failed:
            lines.append(Text(f"{switch.failed} parts failed: {switch.error}", style="red"))
    screen.make_console().print(*lines, sep="\n", soft_wrap=True)


def _show_plan(estimate: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        screen.write_json({"dry_run": estimate})
        return
    console = screen.make_console()
    console.print(f"{estimate['from']} -> {estimate['to']}: {estimate['scenes']:,} scenes", soft_wrap=True)
    if estimate["scenes_per_s"]:
        speed = f"about {duration(estimate['eta_s'])} at {estimate['scenes_per_s']:.1f} scenes/s"
        line = f"{speed}, as measured on a few of the user's scenes; one node, nothing else to do"
    else:
        line = "how long is unknown: the user has no scenes to try it on; name one with --user"
    console.print(line, soft_wrap=True)


def _require(state: ModelsState) -> SwitchView:
    if state.switch is None:
        raise Conflict(f"the switch of the {state.kind} model was ended meanwhile")
    return state.switch


def duration(seconds: float) -> str:
    """Roughly, for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
