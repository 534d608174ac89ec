"""Remote control of a node's models: ``celery inspect models``, ``celery control load_model|unload_model|warmup_model``.

They run in the node's main process, which holds no model and imports no engine: it answers from what its children have
published, and passes commands to them (worker/slots.py). A command is answered at once, with its number or the reason why
it is refused; ``inspect models`` shows its outcome. Installed by ``worker.app``, so that the command line knows them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, inspect_command

from shared.errors import ScenefleetError
from worker.online.dispatcher import online_queues

if TYPE_CHECKING:
    from worker.node import Node

_node: Node | None = None


def install() -> None:
    """Register the commands with Celery, for workers and for its command line."""
    for answer in (models, active_queues):
        inspect_command()(answer)
    for command in (load_model, unload_model, warmup_model):
        control_command(args=[("name", str)], signature="<model>")(command)


def answer_for(node: Node) -> None:
    """Let the commands of this process answer for ``node``."""
    global _node
    _node = node


def models(state: Any, **_: Any) -> dict[str, Any]:
    """Models of each process: state, memory, load times, last use, evictions, errors."""
    return {"error": _NO_NODE} if _node is None else {"ok": _node.describe()}


def active_queues(state: Any, **_: Any) -> list[dict[str, Any]]:
    """The queues that this node consumes; instead of Celery's command, which knows only those of one channel."""
    consumer = state.consumer
    if not consumer.task_consumer:
        return []
    return [
        dict(queue.as_dict(recurse=True))
        for queue in (*online_queues(consumer), *consumer.task_consumer.queues)
    ]


def load_model(state: Any, name: str = "", **_: Any) -> dict[str, Any]:
    """Load a model of the catalogue in every process of its family's nodes."""
    return _give("load", name)


def unload_model(state: Any, name: str = "", **_: Any) -> dict[str, Any]:
    """Free a model; the next job that needs it loads it again."""
    return _give("unload", name)


def warmup_model(state: Any, name: str = "", **_: Any) -> dict[str, Any]:
    """Load a model if it is not loaded, and run its warm-up samples."""
    return _give("warm_up", name)


_NO_NODE = "this worker is no node of a fleet: SCENEFLEET_FAMILY is not set"


def _give(verb: str, name: str) -> dict[str, Any]:
    if _node is None:
        return {"error": _NO_NODE}
    if not name:
        return {"error": "no model was named: give its name in models.yaml"}
    try:
        return {"ok": {"command": _node.command(verb, name)}}
    except ScenefleetError as error:
        return {"error": str(error)}
