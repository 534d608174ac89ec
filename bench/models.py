"""What a model costs beyond its engine: stage time over the bare engine's, and our throughput over the bare model's.

``python -m bench.models [--quick] [--only NAME]... [--seconds S] [--threads N]``. Each model in a process of its own, as in a worker.
In turn, in changing order, the same inputs go through the bare engine (`bench/engines.py`), through the model's public
method, and through a job of its stage over a real Postgres and storage (`bench/jobs.py`), until the engine alone has
computed for S seconds (20). A round gives one ratio of times; the median of the rounds is reported, so that a moment in
which the machine did something else does not count. The lite models are whole; the full ones have the real widths, four layers
and random weights (`bench/checkpoints.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench import OUT

ROOT = Path(__file__).parents[1]
MAX_STAGE_RATIO = 1.05
MIN_THROUGHPUT = 0.95
#: While the astronaut is seen in the sample, without the dissolves.
_FACE_FROM_S, _FACE_UNTIL_S = 9.5, 17.0
#: Fewest rounds, however long one takes.
_LEAST_ROUNDS = 3
_TIMEOUT_S = 1800
#: Labels of pictures in a run of the vision stage: they are embedded once per process, before the clock runs.
_LABELS = "a person\na rocket\na street\na cup of coffee\n"
#: Words that the small vocabularies of the random models have.
_SPOKEN = (
    "a about and animal any are at boat black brown bus cat children city coffee cook cup dog drink end fox fur garden"
    " goes had has her his house in into is island it jumps kitchen large lazy light lives long man milk morning"
    " mountain music near night nobody number of old on one over people quick rain red river road rocket sails sea she"
    " ship sky slowly small something story street sun that the to town tree two under walks water where white wind"
    " window with woman word young"
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to measure."""

    name: str
    #: Of the catalogue; empty: made by `bench/checkpoints.py`.
    catalogue: str
    kind: str
    #: None: it is only asked by requests.
    stage: str | None
    #: What throughput counts.
    unit: str


SUBJECTS = (
    Subject(name="pocketsphinx", catalogue="pocketsphinx-en-us", kind="asr", stage="asr", unit="s of audio"),
    Subject(name="minilm", catalogue="all-minilm-l6-v2", kind="text", stage="text", unit="texts"),
    Subject(name="dlib", catalogue="dlib-resnet-v1", kind="face", stage="face", unit="pictures"),
    Subject(name="whisper", catalogue="", kind="asr", stage="asr", unit="s of audio"),
    Subject(name="bge-m3", catalogue="", kind="text", stage="text", unit="texts"),
    Subject(name="bge-m3-flagembedding", catalogue="", kind="text", stage="text", unit="texts"),
    Subject(name="bge-reranker", catalogue="", kind="rerank", stage=None, unit="documents"),
    Subject(name="siglip", catalogue="", kind="vision", stage="vision", unit="pictures"),
    Subject(name="adaface", catalogue="", kind="face", stage="face", unit="pictures"),
)


# --- inputs


def make_texts(count: int) -> list[str]:
    """What is said in scenes of 10 to 25 s: 20 to 60 words."""
    rng, words = random.Random(7), _SPOKEN.split()
    return [" ".join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(count)]


def read_pictures(count: int) -> list[Any]:
    """uint8 [540, 960, 3] RGB: frames of the sample, each with one face."""
    import av

    found: list[Any] = []
    with av.open(str(ROOT / "samples" / "demo.mp4")) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and _FACE_FROM_S + len(found) <= frame.time < _FACE_UNTIL_S:
                found.append(frame.to_ndarray(format="rgb24"))
    return (found * count)[:count]


def read_speech(length_s: float) -> Any:
    """float32 [N], mono, 16 kHz: the sample's narration."""
    from tests.contracts.candidates import read_audio

    return read_audio(ROOT / "samples" / "demo.mp4", length_s)


# --- one model, in its own process


def measure(subject: Subject, folder: Path, seconds: float, quick: bool) -> dict[str, Any]:
    """Time one model; POSTGRES_URL names an empty, migrated database."""
    os.environ["SCENEFLEET_HOME"] = str(folder / "home")
    os.environ["SCENEFLEET_FAMILY"] = {"rerank": "text"}.get(subject.kind, subject.kind)
    (folder / "labels.txt").write_text(_LABELS)
    os.environ["VISION_LABELS"] = str(folder / "labels.txt")
    if not subject.catalogue:
        from bench.checkpoints import CHECKPOINTS
        from tests.checkpoints import write_catalog

        spec = CHECKPOINTS[subject.name][quick](folder / "weights")
        os.environ["SCENEFLEET_MODELS_FILE"] = str(write_catalog(folder / "models.yaml", [spec]))
        os.environ["SCENEFLEET_PROFILE"] = "full"

    from bench.engines import ENGINES
    from bench.jobs import Took, Work
    from worker.runtime import get_runtime

    runtime = get_runtime()
    model: Any = runtime.model(subject.kind)  # type: ignore[arg-type]
    model.warm_up()
    # Before the bare engine is loaded beside it.
    process = psutil.Process().memory_info()
    work = Work(runtime, subject.stage) if subject.stage else None
    inputs: Any
    call: Callable[[], object]
    if subject.kind == "asr":
        inputs = read_speech(6.0 if quick else 16.0 if subject.name == "whisper" else 30.0)
        count: float = len(inputs) / 16_000
        call = partial(model.transcribe, inputs)
        if work:
            work.put_audio(inputs)
    elif subject.kind in ("text", "rerank"):
        inputs = make_texts(8 if quick else 64 if subject.kind == "text" else 33)
        count = len(inputs) - (subject.kind == "rerank")
        if subject.kind == "rerank":
            call = partial(model.rerank, inputs[0], inputs[1:])
        else:
            call = partial(model.encode, inputs)
        if work:
            work.put_texts(inputs)
    else:
        pictures = read_pictures(4 if quick else 16 if subject.kind == "face" else 8)
        inputs = work.put_pictures(pictures) if work else pictures
        count = len(inputs)
        call = partial(model.analyse if subject.kind == "face" else model.embed_images, inputs)
    bare = ENGINES[model.spec.provider](model.spec, model.threads)
    prepared = bare.prepare(inputs)
    if model.spec.provider == "pocketsphinx":
        import torch

        # As its own load leaves it.
        torch.set_num_threads(1)

    def ours() -> None:
        call()

    steps: dict[str, Callable[[], Took | None]] = {"bare": lambda: bare.run(prepared), "model": ours}
    if work:
        steps |= {"reading": work.read, "stage": work.do}
    took: dict[str, list[float]] = {name: [] for name in (*steps, "job")}
    used: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    while not took["bare"] or (
        not quick and (sum(took["bare"]) < seconds or len(took["bare"]) < _LEAST_ROUNDS)
    ):
        for name in list(steps) if len(took["bare"]) % 2 == 0 else list(reversed(steps)):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            job = steps[name]()
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
            used[name].append(cpu_s)
            if job is None:
                took[name].append(wall_s)
            else:
                took["stage"].append(job.stage_s)
                took["job"].append(job.job_s)
    return {
        "name": subject.name,
        "model": model.spec.name,
        "unit": subject.unit,
        "count": count,
        "batch": model.spec.batch,
        "threads": model.threads,
        "rss_mb": process.rss / 2**20,
        "took_s": took,
        "cpu_s": used,
    }


# --- all of them


def measure_all(
    subjects: Sequence[Subject], seconds: float, quick: bool, console: Console
) -> list[dict[str, Any]]:
    """Each in a process of its own, one after the other, over one Postgres."""
    from db import schema
    from tests.support.services import PostgresServer

    found = []
    with tempfile.TemporaryDirectory(prefix="scenefleet-bench-") as name:
        folder = Path(name)
        postgres = PostgresServer(folder / "postgres")
        try:
            postgres.start()
            for number, subject in enumerate(subjects):
                database = f"bench_{number}"
                postgres.execute(f"CREATE DATABASE {database}")
                url = postgres.url(database)
                schema.upgrade(url=url.replace("postgresql://", "postgresql+psycopg://"))
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    result = _measure_in_child(subject, Path(own), url, seconds, quick)
                found.append(result | ratios(result["took_s"], result["cpu_s"]))
                named = {
                    name: round(value, 3)
                    for name, value in found[-1].items()
                    if name.endswith("_ratio") and value
                }
                console.print(f"{subject.name}: {len(result['took_s']['bare'])} rounds, {named}", style="dim")
        finally:
            postgres.stop()
    return found


def _measure_in_child(
    subject: Subject, folder: Path, postgres_url: str, seconds: float, quick: bool
) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "bench.models",
        "--child",
        subject.name,
        str(folder),
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        cwd=ROOT,
        env={
            **os.environ,
            "POSTGRES_URL": postgres_url,
            "HF_HUB_OFFLINE": "1",
            "SCENEFLEET_LOG_LEVEL": "WARNING",
        },
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{subject.name} could not be measured:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ratios(took: dict[str, list[float]], used: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the rounds; None for a model without a stage."""
    stage, job, model = (_over(took, name) for name in ("stage", "job", "model"))
    assert model is not None
    return {
        "stage_ratio": stage,
        "job_ratio": job,
        "throughput_ratio": 1 / model,
        "model_cpu_ratio": _over(used, "model"),
        "job_cpu_ratio": _over(used, "stage"),
    }


def _over(seconds: dict[str, list[float]], name: str) -> float | None:
    """A stage reads its pictures from files, so the engine's side does so too; a model is given them."""
    bare = seconds["bare"]
    if name != "model":
        bare = [sum(pair) for pair in zip(bare, seconds.get("reading") or [0.0] * len(bare), strict=True)]
    pairs = [ours / theirs for ours, theirs in zip(seconds.get(name, ()), bare, strict=False)]
    return statistics.median(pairs) if pairs else None


def judge(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets, and whether each was met."""
    rows = []
    for result in results:
        name, stage_ratio = result["name"], result["stage_ratio"]
        if stage_ratio is not None:
            rows.append((f"{name}: stage time over bare engine", stage_ratio, "<=", MAX_STAGE_RATIO))
        rows.append((f"{name}: throughput over bare model", result["throughput_ratio"], ">=", MIN_THROUGHPUT))
    return [
        {
            "target": name,
            "measured": round(value, 4),
            "rule": f"{sign} {bound:g}",
            "met": value <= bound if sign == "<=" else value >= bound,
        }
        for name, value, sign, bound in rows
    ]


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="Models beside the bare engine: in the same process, on the same inputs")
    measured = ("rounds", "engine s", "bare /s", "ours /s", "throughput", "stage", "whole job")
    columns = ("model", *measured, "CPU: model", "CPU: job", "MB")
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for result in results:
        took = result["took_s"]
        bare, ours = (result["count"] / statistics.median(took[name]) for name in ("bare", "model"))
        names = ("throughput_ratio", "stage_ratio", "job_ratio", "model_cpu_ratio", "job_cpu_ratio")
        table.add_row(
            f"{result['name']} ({result['unit']})",
            str(len(took["bare"])),
            f"{sum(took['bare']):.0f}",
            f"{bare:.2f}",
            f"{ours:.2f}",
            *("" if result[name] is None else f"{result[name]:.3f}" for name in names),
            f"{result['rss_mb']:.0f}",
        )
    console.print(table)
    console.print(
        f"throughput: ours over the bare model's, at least {MIN_THROUGHPUT} wanted\n"
        f"stage: its time over the bare engine's, at most {MAX_STAGE_RATIO} wanted\n"
        "whole job: the same with claim, lease and the transaction that stores the results\n"
        "CPU: seconds of CPU in place of time, which other programs on the machine disturb less\n"
        "MB: memory of the process (RSS) with our model loaded and warmed, before the bare engine is"
    )


def main() -> int:
    """Measure, print, store; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one round, tiny models: does everything run?")
    parser.add_argument("--only", action="append", choices=[subject.name for subject in SUBJECTS])
    parser.add_argument("--seconds", type=float, default=20.0, help="engine time of each model")
    parser.add_argument("--threads", type=int, help="of engine and model; default: every CPU")
    parser.add_argument("--out", type=Path, default=OUT / "models.json")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        os.environ["SCENEFLEET_MODEL_THREADS"] = str(options.threads)
    if options.child:
        name, folder = options.child
        subject = next(subject for subject in SUBJECTS if subject.name == name)
        print(json.dumps(measure(subject, Path(folder), options.seconds, options.quick)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen = [subject for subject in SUBJECTS if options.only is None or subject.name in options.only]
    if not os.environ.get("SCENEFLEET_TEST_ASSETS") and any(subject.name == "adaface" for subject in chosen):
        console.print(
            "adaface is left out: YuNet's weights are found by SCENEFLEET_TEST_ASSETS, which is not set"
        )
        chosen = [subject for subject in chosen if subject.name != "adaface"]
    results = measure_all(chosen, options.seconds, options.quick, console)
    show(results, console)
    targets = judge(results)
    for row in targets:
        if not row["met"] and not options.quick:
            console.print(f"MISSED {row['target']}: {row['measured']:.3f}, wanted {row['rule']}", style="red")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "platform": platform.platform()}
    report = {
        "machine": machine,
        "subjects": [asdict(subject) for subject in chosen],
        "results": results,
        "targets": targets,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if options.quick or all(row["met"] for row in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
