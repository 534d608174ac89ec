"""infinity-emb over HTTP, in a virtual environment of its own, with the checkpoint that our node serves."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.env import ensure_env, same_torch
from bench.online.load import THREADS
from local.servers.ports import find_free_port
from tests.support.fleet import kept_environment

VERSION = "0.0.78"
_FOLDER = Path(__file__).parents[2] / "build" / "bench-infinity"
#: It names minimums only: these are of its time. Later ones of click, transformers and optimum break it.
_PACKAGES = (
    f"infinity-emb[server]=={VERSION}", "click==8.1.8", "typer==0.12.5", "transformers==4.49.0",
    "sentence-transformers==3.4.1", "optimum==1.24.0", "huggingface-hub<1", "einops",
)  # fmt: skip
_READY_S = 300.0


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Serve the files of a model with its defaults; yields the address that embeds."""
    python = ensure_env(_FOLDER, (same_torch(), *_PACKAGES))
    port = find_free_port()
    command = [str(python.with_name("infinity_emb")), "v2", "--model-id", str(model), "--port", str(port),
               "--host", "127.0.0.1", "--engine", "torch", "--device", "cpu", "--served-model-name", "minilm"]  # fmt: skip
    environment = {**kept_environment(), **THREADS, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
                   "INFINITY_ANONYMOUS_USAGE_STATS": "0"}  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=os.sep
        )
    try:
        _wait_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/embeddings"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"infinity-emb does not start:\n{said}") from None
        time.sleep(0.5)
