"""Exit statuses of the command, of nodes and of their children."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """The statuses; docs/cli.md lists those of the command."""

    OK = 0
    #: The command failed; one sentence on stderr gives the reason.
    FAILED = 1
    #: Invalid command line.
    USAGE = 2
    #: Internal error.
    INTERNAL_ERROR = 70
    #: A pool child ended itself after a stage's time limit.
    TIME_LIMIT = 71
    #: A node's main process was stuck and ended itself: a supervisor starts it again.
    STUCK = 72
    #: A node, or a pool child, can't load its model, or another node has its name: a restart can't help.
    CONFIG = 78
    #: Ctrl-C.
    INTERRUPTED = 130
    #: The reader of the output closed it.
    BROKEN_PIPE = 141
