"""A switch of the searched model: the new model's vectors are made beside the old ones, then the pointer is moved.

While a switch is open both models' vectors are written for whatever is indexed, so the pointer can go either way at any
time and nothing is lost by it. The archive is looked through in the order in which videos were indexed; what has a vector
of the old model and none of the new is given to a job. Locks: the switch's row first, then a video's; whoever holds a
video's row and has to know which models are kept takes the switch's only FOR KEY SHARE, which no job's end waits for.

``pointer`` says which model is searched and which are kept, ``parts`` plans the jobs, ``acts`` is what an operator does.
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
