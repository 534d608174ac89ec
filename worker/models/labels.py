"""Reads the labels for tags: the shipped list, or a custom one. Imports no engine."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ModelUnavailable

SHIPPED = Path(__file__).with_name("labels.txt")

#: All labels of a process are embedded once, and compared with every keyframe.
MAX_LABELS = 2000
#: A sentence; a text tower reads about 60 words.
MAX_LABEL_CHARS = 100
_MAX_BYTES = 2**20


def read_labels(path: Path | None = None) -> tuple[str, ...]:
    """The labels of a UTF-8 text file (None: the shipped one), one per line, each once, in their order.

    Blank lines and lines that begin with ``#`` are ignored.

    Raises: ModelUnavailable, in one sentence, when the file is missing, too large, no text or without labels.
    """
    path = path or SHIPPED
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"can't be read ({error.strerror})", "correct VISION_LABELS") from error
    if len(data) > _MAX_BYTES:
        raise _refused(path, f"has more than {_MAX_BYTES} bytes", "shorten it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = data.count(b"\n", 0, error.start) + 1
        raise _refused(path, f"is not UTF-8 text (line {place})", "save it as UTF-8") from error
    labels: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        label = " ".join(line.split())
        if not label or label.startswith("#"):
            continue
        if not label.isprintable():
            raise _refused(path, f"has a control character in line {number}", "remove it")
        if len(label) > MAX_LABEL_CHARS:
            fault = f"has a label of {len(label)} characters in line {number}"
            raise _refused(path, fault, f"use {MAX_LABEL_CHARS} at most")
        labels[label] = None
    if not labels:
        raise _refused(path, "has no label", "write one per line")
    if len(labels) > MAX_LABELS:
        raise _refused(path, f"has {len(labels)} labels", f"keep {MAX_LABELS} at most")
    return tuple(labels)


def _refused(path: Path, fault: str, remedy: str) -> ModelUnavailable:
    return ModelUnavailable(f"The list of labels {path} {fault}: {remedy}")
