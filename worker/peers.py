"""Which other nodes can do what this one can't: load a model that is not on this machine."""

from __future__ import annotations

from shared import nodes
from shared.errors import BrokerUnavailable
from shared.logs import get_logger
from worker.runtime import Runtime

log = get_logger(__name__)


def have(model: str, runtime: Runtime) -> bool:
    """Whether another ready node of this family can load a model, as far as the nodes know. Not known counts as yes."""
    try:
        records = nodes.read_nodes(runtime.settings.redis_url).values()
    except BrokerUnavailable as error:
        log.warning("other nodes not asked", model=model, error=error)
        return True
    here = runtime.owner.partition(":")[0]
    family = runtime.settings.family
    return any(
        record.family == family
        and record.state == "ready"
        and record.name != here
        and model not in record.lacks
        for record in records
    )
