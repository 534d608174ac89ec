"""Which nodes run here, on which GPUs, and how long one that keeps ending waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import fleet, node, node_plan
from local.process_runner import ProgramState
from local.restart_backoff import FREE_STARTS, LONGEST_S, WINDOW_S, pause_s
from shared.errors import InvalidRequest
from shared.exit_status import ExitStatus
from shared.routing import NODES

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-22c2d0c9-5f4b-5ddf-9f28-0f4d6a2b8e9c"
OLD_MIG = f"MIG-{UUID}/7/0"


@pytest.mark.parametrize(
    ("text", "models", "gpus", "found"),
    [
        # Families without a model are left out.
        ("media,asr:3,vision,search", {"asr", "text"}, (), [("media", 1, ()), ("asr", 3, ()), ("search", 4, ())]),
        # Spaces and empty parts are ignored.
        (" media , ,search:2,", set(), (), [("media", 1, ()), ("search", 2, ())]),
        (" asr : 2 @ 0 + 1 ,", {"asr"}, (), [("asr", 2, ("0", "1"))]),
        # A node has one process per GPU.
        (f"asr@0,text@{UUID},face@{MIG},media:2", {"asr", "text", "face"}, (),
         [("asr", 1, ("0",)), ("text", 1, (UUID,)), ("face", 1, (MIG,)), ("media", 2, ())]),
        (f"asr:3@0+0+{OLD_MIG}", {"asr"}, (), [("asr", 3, ("0", "0", OLD_MIG))]),
        # A family may have nodes of its own on each GPU.
        ("asr@0,asr@1+2,media", {"asr"}, (), [("asr", 1, ("0",)), ("asr-2", 2, ("1", "2")), ("media", 1, ())]),
        # Nodes that name no GPU get those of the setting.
        ("media:2,asr,text@3", {"asr", "text"}, ("0", "1"), [("media", 2, ()), ("asr", 2, ("0", "1")), ("text", 1, ("3",))]),
    ],
)  # fmt: skip
def test_a_plan_is_read(
    text: str, models: set[str], gpus: tuple[str, ...], found: list[tuple[str, int, tuple[str, ...]]]
) -> None:
    nodes = node_plan.parse_plan(text, models, gpus)
    assert [(node.name, node.processes, node.devices) for node in nodes] == found
    assert [node.family for node in nodes] == [node.name.removesuffix("-2") for node in nodes]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("media,smell", "'smell'"),
        ("asr,asr", "names asr twice"),
        ("asr@0,asr", "names asr twice"),
        ("asr:0", "'asr:0'"),
        ("asr:", "'asr:'"),
        ("asr:-1", "'asr:-1'"),
        ("asr:257", "'asr:257'"),
        ("asr:2@0", "'asr:2@0': processes 2, GPUs 1 (0)"),
        ("asr:1@0+1", "processes 1, GPUs 2 (0, 1)"),
        ("asr@", "'' is no GPU"),
        ("asr@0:2", "'0:2' is no GPU"),
        ("asr@-1", "'-1' is no GPU"),
        ("asr@cuda:0", "'cuda:0' is no GPU"),
        ("asr@GPU-", "'GPU-' is no GPU"),
        ("asr@GPU-nothex", "'GPU-nothex' is no GPU"),
        ("asr@MIG-GPU-8932f937/1/0", "is no GPU"),
        ("media@0", "media has no model and needs no GPU"),
        ("vision", "leaves no node"),
        ("", "leaves no node"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match="SCENEFLEET_NODES") as error:
        node_plan.parse_plan(text, {"asr"})
    assert said in str(error.value)


def test_the_api_is_named_beside_the_families() -> None:
    assert [node.name for node in node_plan.parse_plan("api, search", set())] == ["search"]
    assert node_plan.names_api("search, api") and not node_plan.names_api("search")
    with pytest.raises(InvalidRequest):
        node_plan.parse_plan("api:2", set())


def test_wrong_gpus_of_the_setting_are_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest, match="SCENEFLEET_GPUS=first: 'first' is no GPU"):
        node_plan.parse_plan("asr", {"asr"}, ("first",))


# --- the node itself


def test_a_node_takes_the_gpus_it_is_told_or_those_of_the_setting() -> None:
    assert node.choose_devices("asr", "0, 1", ("5",)) == ("0", "1")
    assert node.choose_devices("asr", None, ("5",)) == ("5",)
    assert node.choose_devices("media", None, ("5",)) == ()
    with pytest.raises(InvalidRequest, match="--gpu 0, but media has no model"):
        node.choose_devices("media", "0", ())
    with pytest.raises(InvalidRequest, match="--gpu : '' is no GPU"):
        node.choose_devices("asr", "", ())
    with pytest.raises(InvalidRequest, match="SCENEFLEET_GPUS=x: 'x' is no GPU"):
        node.choose_devices("asr", None, ("x",))


def test_one_gpu_is_shown_from_the_start_and_several_to_each_process() -> None:
    one = node.node_environment("asr", (UUID,))
    assert (one["SCENEFLEET_GPUS"], one["CUDA_VISIBLE_DEVICES"]) == (UUID, UUID)
    several = node.node_environment("asr", ("0", "1"))
    assert several["SCENEFLEET_GPUS"] == "0,1"
    assert several.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    none = node.node_environment("media")
    assert none["SCENEFLEET_GPUS"] == ""
    assert {env["CUDA_DEVICE_ORDER"] for env in (one, several, none)} == {"PCI_BUS_ID"}


def test_the_command_line_of_a_node_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The whole command: a wrong GPU ends it before anything is started."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "node", "asr", "--gpu", "0,1", "-c", "3"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "SCENEFLEET_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    remedy = "name one GPU per process, the same one twice if two shall share it"
    assert done.stderr == f"scenefleet: scenefleet node asr: processes 3, GPUs 2 (0, 1); {remedy}\n"


def test_usable_families_keep_the_order_of_the_fleet() -> None:
    assert node_plan.usable_families({"face", "asr"}) == ["media", "asr", "face", "housekeeping", "search"]
    assert node_plan.usable_families({"asr", "text", "vision", "face", "ocr"}) == list(NODES)


# --- a node that keeps ending


def test_quick_ends_wait_longer_each_time_up_to_a_limit(tmp_path: Path) -> None:
    record = tmp_path / "deep" / "face.starts"
    pauses = [pause_s(record, 1000.0 + second) for second in range(12)]
    assert pauses[:FREE_STARTS] == [0.0] * FREE_STARTS
    assert pauses[FREE_STARTS : FREE_STARTS + 3] == [2.0, 4.0, 8.0]
    assert pauses[-1] == LONGEST_S


@pytest.mark.parametrize("now_s", [9000.0 + WINDOW_S, 1000.0])
def test_an_old_start_or_a_clock_set_back_does_not_keep_a_node_away(tmp_path: Path, now_s: float) -> None:
    record = tmp_path / "face.starts"
    for _ in range(10):
        pause_s(record, 9000.0)
    assert pause_s(record, now_s) == 0.0


@pytest.mark.parametrize("damage", ["", "[1, 2", "null", '{"a": 1}', '["x"]'])
def test_a_damaged_record_is_begun_again(tmp_path: Path, damage: str) -> None:
    record = tmp_path / "face.starts"
    record.write_text(damage)
    assert pause_s(record, 5.0) == 0.0
    assert pause_s(record, 6.0) == 0.0


def test_why_a_node_has_left_is_read_from_its_log_wherever_up_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """supervisord names logs from its own folder, the home."""
    (planned,) = node_plan.parse_plan("media:1", set(), ())
    (tmp_path / "logs").mkdir()
    line = {"level": "error", "event": "leaving", "failure": "Model m can't be loaded: nowhere"}
    (tmp_path / "logs" / "media.log").write_text(f"text\n{json.dumps(line)}\n")
    ended = ProgramState(
        state="EXITED", pid=0, exit_status=ExitStatus.CONFIG, started_at_s=1, log="logs/media.log"
    )
    monkeypatch.chdir("/")
    view = fleet._view(tmp_path, planned, ended, None)
    assert (view.state, view.detail) == ("failed", "Model m can't be loaded: nowhere")
