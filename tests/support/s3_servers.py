"""S3 servers of a test run, over real HTTP on a free loopback port.

``moto`` is quick and forgiving: it accepts any credentials, and expired or tampered URLs. ``swift`` is OpenStack
Swift, an independent S3 server that verifies both. Where one is not installed the test is skipped, but in
CI (environment variable ``CI``) it fails.
"""

from __future__ import annotations

import importlib.util
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.storage import StorageConfig
from tests.support.assets import give_up

REGION = "us-east-1"
ACCESS_KEY = "scenefleet:tester"
SECRET_KEY = "only/for+tests-7GZs"
STRANGER_KEY = "scenefleet:stranger"  # known to Swift, with the same secret, but allowed nothing
START_S = 60


@pytest.fixture(scope="session")
def moto() -> Iterator[StorageConfig]:
    """A moto server in this process."""
    if importlib.util.find_spec("moto") is None:
        give_up("moto[server] is not installed: pip install 'moto[server]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield config_for(f"{host}:{port}")
    finally:
        server.stop()


@pytest.fixture(scope="session")
def swift() -> Iterator[StorageConfig]:
    """An OpenStack Swift."""
    if importlib.util.find_spec("swift") is None:
        give_up("OpenStack Swift is not installed: pip install swift")
    account, user = ACCESS_KEY.split(":")
    with tempfile.TemporaryDirectory(prefix="swift-") as folder, tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, str(Path(__file__).with_name("swift_server.py"))]
        process = subprocess.Popen(
            [*command, folder, account, user, SECRET_KEY, REGION],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            ready = process.stdout.readline().split()  # empty when the process ends first
            if ready[:1] != ["READY"]:
                log.seek(0)
                pytest.fail(f"Swift did not start: {log.read()[-2000:]}")
            yield config_for(f"127.0.0.1:{ready[1]}")
        finally:
            process.communicate(timeout=START_S)  # closes its input, at which it ends


def config_for(endpoint: str, **changes: object) -> StorageConfig:
    """The configuration of the minio backend for a server at ``endpoint``."""
    keys = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": REGION}
    values = {"backend": "minio", "endpoint": endpoint, "read_timeout_s": 20.0, **keys, **changes}
    return StorageConfig.model_validate(values)


def variables_of(config: StorageConfig) -> dict[str, str]:
    """The settings of a process that uses this storage."""
    names = ("backend", "endpoint", "access_key", "region", "bucket_uploads", "bucket_sidecars", "bucket_tmp")
    return {f"STORAGE_{name.upper()}": getattr(config, name) for name in names} | {
        "STORAGE_SECRET_KEY": SECRET_KEY
    }


def with_own_buckets(config: StorageConfig) -> StorageConfig:
    """The same server, with buckets that do not exist yet."""
    name = secrets.token_hex(6)
    roles = ("uploads", "sidecars", "tmp")
    return config.model_copy(update={f"bucket_{role}": f"{role}-{name}" for role in roles})
