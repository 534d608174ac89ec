"""Lists of labels: the shipped one, the user's, and those that can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ModelUnavailable
from worker.models.labels import MAX_LABEL_CHARS, MAX_LABELS, read_labels


def test_the_shipped_list_has_labels_each_once() -> None:
    labels = read_labels()
    assert 100 <= len(labels) == len(set(labels))
    assert {"dog", "rocket", "astronaut", "cup of coffee"} <= set(labels)
    assert not [label for label in labels if label.startswith("#") or label != label.strip()]


def test_reads_a_list_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeff# mine\r\n\r\n dog \r\nein   Hündchen\r\n子犬\r\ndog\r\n{}%s\r\nlast".encode())
    assert read_labels(path) == ("dog", "ein Hündchen", "子犬", "{}%s", "last")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no label: write one per line"),
        (b"# only remarks\n\n", "has no label: write one per line"),
        ("cat\nhündchen".encode("latin-1"), "is not UTF-8 text (line 2): save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text (line 1): save it as UTF-8"),
        (b"cat\nd\x00g\n", "has a control character in line 2: remove it"),
        (b"x" * (2**20 + 1), "has more than 1048576 bytes: shorten it"),
        (
            b"x" * (MAX_LABEL_CHARS + 1),
            f"has a label of {MAX_LABEL_CHARS + 1} characters in line 1: use {MAX_LABEL_CHARS} at most",
        ),
        (
            "\n".join(map(str, range(MAX_LABELS + 1))).encode(),
            f"has {MAX_LABELS + 1} labels: keep {MAX_LABELS} at most",
        ),
    ],
    ids=["nothing", "remarks", "latin-1", "picture", "control", "large", "long", "many"],
)
def test_refuses_in_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable) as refused:
        read_labels(path)
    assert str(refused.value) == f"The list of labels {path} {said}"


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        ModelUnavailable, match=r"can't be read \(No such file or directory\): correct VISION_LABELS"
    ):
        read_labels(tmp_path / "none.txt")
    with pytest.raises(ModelUnavailable, match=r"can't be read \(Is a directory\): correct VISION_LABELS"):
        read_labels(tmp_path)
