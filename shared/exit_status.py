"""Exit statuses of the command, of nodes and of their children: one table."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What each status says; the command's own also stand in docs/cli.md."""

    OK = 0
    #: The command did not work; one sentence on stderr says why.
    FAILED = 1
    #: The command line is wrong.
    USAGE = 2
    #: Internal error.
    INTERNAL_ERROR = 70
    #: A pool child ended itself past a stage's time limit.
    TIME_LIMIT = 71
    #: A node, or a pool child, can't load its model: starting it again can't help.
    CONFIG = 78
    #: Ctrl-C.
    INTERRUPTED = 130
    #: The reader of the output left.
    BROKEN_PIPE = 141
