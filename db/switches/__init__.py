"""A switch of the searched model: creates the new model's vectors beside the old ones, then moves the pointer.

While a switch is open both models' vectors are written for new videos, so the pointer can be moved in either direction at any
time without loss. The archive is read in the order in which videos were indexed; scenes with a vector
of the old model and none of the new become parts of jobs. Locks: the switch's row first, then a video's; a transaction that holds
a video's row and needs the kept models locks the switch's row FOR KEY SHARE, for which no end of a job waits.

``pointer`` reads the active and the kept models, ``parts`` plans the jobs, ``acts`` are the operator's actions.
"""

from db.switches.acts import begin, discard, discard_some, end, find, point, require, samples
from db.switches.parts import Progress, advance, count, lacking, open_switches, progress, retry, stage_of
from db.switches.pointer import active_models, kept_models, model_row, models_of, searched_model

__all__ = [
    "Progress",
    "active_models",
    "advance",
    "begin",
    "count",
    "discard",
    "discard_some",
    "end",
    "find",
    "kept_models",
    "lacking",
    "model_row",
    "models_of",
    "open_switches",
    "point",
    "progress",
    "require",
    "retry",
    "samples",
    "searched_model",
    "stage_of",
]
