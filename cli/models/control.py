"""``scenefleet models status|load|unload|warmup``: see and change what models running nodes hold.

Speaks to the nodes' main processes by Celery's remote control, as ``celery -A worker.app inspect models`` does. A command
is only accepted at first; then the nodes are asked until each of their processes has said how it went.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.markup import escape
from rich.table import Table

from cli import screen
from shared import nodes
from shared.broker import broker_config
from shared.errors import BrokerUnavailable, ModelUnavailable, NotFound, Outage
from shared.nodes import NodeRecord
from shared.settings import get_settings, hide_password

#: Verb of the command line -> remote command of the node.
COMMANDS = {"load": "load_model", "unload": "unload_model", "warmup": "warmup_model"}
#: How long a node's main process may take to answer; it never computes anything.
ANSWER_S = 5.0
POLL_S = 0.3
MIB = 2**20
#: Final states of a command.
ENDED = ("done", "failed", "lost", "refused")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a command in one process of a node."""

    node: str
    #: None: the node as a whole refused it.
    slot: int | None
    #: waiting, running, done, failed, lost (its process ended meanwhile) or refused
    state: str
    error: str = ""
    seconds: float | None = None

    def __str__(self) -> str:
        return self.node if self.slot is None else f"{self.node} slot {self.slot}"


class Remote:
    """Celery's remote control over the fleet's Redis.

    Raises:
        BrokerUnavailable: from every method, when Redis does not answer.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._app = Celery("scenefleet-control", set_as_current=False)
        self._app.conf.update(broker_config(redis_url, broker_url=get_settings().broker_url))

    def nodes(self) -> dict[str, NodeRecord]:
        """The nodes that gave a sign of life lately."""
        return nodes.read_nodes(self._redis_url)

    def ask(self, command: str, names: Sequence[str], **arguments: str) -> dict[str, dict[str, Any]]:
        """Node -> its answer, ``{"ok": ...}`` or ``{"error": sentence}``; nodes that don't answer in time are left out."""
        try:
            replies = self._app.control.broadcast(
                command, arguments=arguments, destination=list(names), reply=True, timeout=ANSWER_S
            )
        except (OperationalError, RedisError, OSError) as error:
            raise BrokerUnavailable(
                f"Redis at {hide_password(self._redis_url)} does not answer ({error}): is it running?"
            ) from error
        return {name: reply for answer in replies or () for name, reply in answer.items()}

    def describe(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Node -> what it says of itself and its processes."""
        replies = self.ask("models", names)
        return {name: reply["ok"] for name, reply in replies.items() if "ok" in reply}


def show_status(wanted: Sequence[str], *, as_json: bool) -> int:
    """Show how the models of every process are; returns the exit status, 1 when a node does not answer."""
    remote = Remote(get_settings().require("redis_url"))
    names = _chosen(remote.nodes(), wanted)
    described = remote.describe(names)
    silent = [name for name in names if name not in described]
    shown = [described[name] for name in names if name in described]
    if as_json:
        screen.write_json({"nodes": shown, "silent": silent})
    else:
        console = screen.make_console()
        screen.print_whole(console, status_table(shown))
        for line in _remarks(shown):
            console.print(line, soft_wrap=True)
    if silent:
        raise Outage(f"no answer within {ANSWER_S:g} s from {', '.join(silent)}: is it busy or stopped?")
    return 0


def status_table(described: Sequence[dict[str, Any]]) -> Table:
    """One line per process and model."""
    table = screen.make_table(
        *("node", "slot", "device", "model", "state"),
        *(">memory", ">load", ">warm-up", ">loads", ">evicted", ">used"),
    )
    for node in described:
        for slot in node["slots"]:
            process = (node["node"], str(slot["slot"]), str(slot.get("evictions", 0)))
            if not slot["models"] or slot["state"] != "ready":
                state = screen.styled(slot["state"])
                table.add_row(*process[:2], "", "", f"process {state}", *[""] * 4, process[2])
                process = ("", "", "")
            for model in sorted(slot["models"], key=lambda model: "unavailable" in model):
                table.add_row(*process[:2], *_model_cells(slot, model, process[2]))
                process = ("", "", "")
    return table


def _model_cells(slot: dict[str, Any], model: dict[str, Any], evictions: str) -> list[str]:
    if "unavailable" in model:
        return ["", f"[dim]({model['kind']})[/dim]", "[dim]none in profile[/dim]", *[""] * 4, evictions]
    name = model["name"] if model["active"] else f"{model['name']} [dim](not active)[/dim]"
    if not model["loaded"]:
        state = "not loaded"
    else:
        state = "[green]loaded[/green]" if model["warm_up_s"] is None else "[green]warm[/green]"
    return [
        slot.get("gpu") or model["device"],
        name,
        state,
        _memory(model),
        _seconds(model.get("load_s")),
        _seconds(model.get("warm_up_s")),
        str(slot.get("loads", {}).get(model["name"], 0)),
        evictions,
        _ago(model.get("last_used")),
    ]


def _remarks(described: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What needs a sentence: errors, and the last command of a process that failed or still runs."""
    for node in described:
        if node["error"]:
            yield f"{node['node']} [red]{escape(node['error'])}[/red]"
        for slot in node["slots"]:
            whose = f"{node['node']} slot {slot['slot']}"
            for model in slot["models"]:
                if model.get("error"):
                    yield f"{whose} {model['name']}: [red]{escape(model['error'])}[/red]"
            command = slot.get("command")
            if command is not None and command["state"] != "done":
                reason = f": {escape(command['error'])}" if command["error"] else ""
                yield f"{whose} {command['verb']} {command['model']} {screen.styled(command['state'])}{reason}"


def run(verb: str, model: str, wanted: Sequence[str], *, timeout_s: float, as_json: bool) -> int:
    """Give nodes a command about a model, wait until it is done, and show its results.

    Args:
        verb: one of `COMMANDS`.
        wanted: nodes; none for every node of the model's family.
        timeout_s: how long to wait; the nodes go on after that.

    Raises:
        ModelUnavailable: a process could not do it, or a node refused; says why. What others did is shown before.
        Outage: not done in time.
    """
    remote = Remote(get_settings().require("redis_url"))
    names = _chosen(remote.nodes(), wanted) if wanted else _nodes_of(model, remote.nodes())
    replies = remote.ask(COMMANDS[verb], names, name=model)
    accepted: dict[str, int] = {}
    outcomes: list[Outcome] = []
    for name in names:
        reply = replies.get(name, {"error": f"no answer within {ANSWER_S:g} s"})
        if "ok" in reply:
            accepted[name] = reply["ok"]["command"]
        else:
            outcomes.append(Outcome(node=name, slot=None, state="refused", error=str(reply["error"])))
    done, late = _wait(remote, accepted, f"{verb} {model}", time.monotonic() + timeout_s)
    outcomes = sorted(outcomes + done, key=lambda outcome: (outcome.node, outcome.slot or 0))
    held_by = {
        (node["node"], slot["slot"]): held
        for node in (remote.describe(list(accepted)) if accepted else {}).values()
        for slot in node["slots"]
        for held in slot["models"]
        if held.get("name") == model
    }
    shown = [{**asdict(one), "model": held_by.get((one.node, one.slot))} for one in outcomes]
    document = {"command": verb, "model": model, "outcomes": shown}
    screen.answer(document, lambda: _outcome_table(shown), as_json=as_json)
    bad = [outcome for outcome in outcomes if outcome.state != "done"]
    if late:
        raise Outage(
            f"{verb} {model} is not done after {timeout_s:g} s and goes on: look with `scenefleet models status`"
        )
    if bad:
        raise ModelUnavailable("; ".join(f"{outcome} {outcome.state}: {outcome.error}" for outcome in bad))
    return 0


def _wait(
    remote: Remote, accepted: dict[str, int], what: str, deadline_s: float
) -> tuple[list[Outcome], bool]:
    """Ask the nodes until each process has ended the command; returns the results, and whether time ran out first."""
    console = screen.make_console(stderr=True)
    outcomes = {name: [Outcome(node=name, slot=None, state="waiting")] for name in accepted}
    told: set[str] = set()
    started_s = time.monotonic()
    with console.status(what) if console.is_terminal else nullcontext() as spinner:
        while open_names := [name for name, found in outcomes.items() if not _ended(found)]:
            described = remote.describe(open_names)
            for name in open_names:
                if name in described:
                    slots = described[name]["slots"]
                    outcomes[name] = [_outcome(name, slot, accepted[name]) for slot in slots]
                elif name not in remote.nodes():
                    outcomes[name] = [Outcome(node=name, slot=None, state="lost", error="the node is gone")]
            going = [one for found in outcomes.values() for one in found if one.state not in ENDED]
            if time.monotonic() > deadline_s:
                break
            if spinner is not None:
                seconds = time.monotonic() - started_s
                spinner.update(f"{what}: {', '.join(f'{one} {one.state}' for one in going)}  {seconds:.0f} s")
            else:
                for line in (f"{one}: {what} {one.state}" for one in chain(*outcomes.values())):
                    if line not in told:
                        told.add(line)
                        console.print(escape(line), soft_wrap=True)
            if going:
                time.sleep(POLL_S)
    return [*chain(*outcomes.values())], any(not _ended(found) for found in outcomes.values())


def _ended(outcomes: Sequence[Outcome]) -> bool:
    return bool(outcomes) and all(outcome.state in ENDED for outcome in outcomes)


def _outcome(node: str, slot: dict[str, Any], number: int) -> Outcome:
    command = slot["command"]
    state, error, seconds = "lost", "another command came before the answer", None
    if command is None or command["id"] < number:
        # The numbers of a node that was started again begin at 1 again.
        error = "the node was started again meanwhile"
    elif command["id"] == number:
        state, error, seconds = command["state"], command["error"], command["seconds"]
    return Outcome(node=node, slot=slot["slot"], state=state, error=error, seconds=seconds)


def _outcome_table(shown: Sequence[dict[str, Any]]) -> Table:
    table = screen.make_table("node", "slot", "", ">took", "model", ">memory", "~")
    for one in shown:
        held = one["model"]
        table.add_row(
            one["node"],
            "" if one["slot"] is None else str(one["slot"]),
            screen.styled(one["state"]),
            _seconds(one["seconds"]),
            "" if held is None else "loaded" if held["loaded"] else "not loaded",
            _memory(held),
            escape(one["error"]),
        )
    return table


def _chosen(records: dict[str, NodeRecord], wanted: Sequence[str]) -> list[str]:
    """The nodes named ``text@box`` or, on any host, ``text``; all of them when none is named."""
    if not records:
        raise Outage("no node gave a sign of life in 30 s: start some, `scenefleet up`")
    chosen: list[str] = []
    for name in wanted:
        found = [node for node in sorted(records) if name in (node, node.partition("@")[0])]
        if not found:
            raise NotFound(f"there is no node {name!r}; there are {', '.join(sorted(records))}")
        chosen += [node for node in found if node not in chosen]
    return chosen if wanted else sorted(records)


def _nodes_of(model: str, records: dict[str, NodeRecord]) -> list[str]:
    from worker.models.catalog import configured_catalog

    family = configured_catalog(get_settings()).get(model).family
    found = sorted(name for name, record in records.items() if record.family == family)
    if not found:
        raise Outage(f"no {family} node gave a sign of life in 30 s: start one, `scenefleet up`")
    return found


def _memory(model: dict[str, Any] | None) -> str:
    held_bytes = model.get("memory_bytes") if model else None
    return "" if held_bytes is None else f"{held_bytes / MIB:.0f} MiB"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    seconds = max(0, int(time.time() - moment))
    unit, size = ("h", 3600) if seconds >= 7200 else ("min", 60) if seconds >= 120 else ("s", 1)
    return f"{seconds // size} {unit} ago"
