"""A real S3 server for tests: OpenStack Swift, all of it in one process on loopback ports.

Swift's S3 interface is used in production, and it verifies signatures and expiry, which moto's does not. Objects are
kept in memory, listings in SQLite under the given folder. Run as a script; prints ``READY <port>`` and serves until
its standard input closes, so it can't outlive the test that started it.
"""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()  # before anything else is imported: Swift serves by green threads

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import eventlet.wsgi  # noqa: E402
from swift.account.server import app_factory as account_app  # noqa: E402
from swift.common import utils  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402
from swift.container.server import app_factory as container_app  # noqa: E402
from swift.obj.mem_server import app_factory as object_app  # noqa: E402

PROXY = """
[DEFAULT]
swift_dir = {folder}
log_level = CRITICAL
[pipeline:main]
pipeline = catch_errors cache bulk s3api users slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = {region}
{s3api}
[filter:users]
{users}
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
TEMPAUTH = """\
use = egg:swift#tempauth
user_{account}_{user} = {secret_key} .admin
user_{account}_stranger = {secret_key}
"""


def serve(folder: Path, account: str, user: str, secret_key: str, region: str) -> None:
    """Serve on a free loopback port until standard input ends."""
    users = TEMPAUTH.format(account=account, user=user, secret_key=secret_key)
    config = PROXY.format(folder=folder, region=region, s3api="", users=users)
    proxy = eventlet.listen(("127.0.0.1", 0))
    eventlet.spawn(eventlet.wsgi.server, proxy, make_proxy(folder, config), log_output=False)
    print(f"READY {proxy.getsockname()[1]}", flush=True)
    eventlet.tpool.execute(sys.stdin.read)


def make_proxy(folder: Path, config: str) -> Any:
    """Start the servers behind a proxy, and return its WSGI application.

    Args:
        folder: where listings and rings are kept.
        config: the proxy's configuration, whose ``swift_dir`` is the folder.
    """
    utils.HASH_PATH_SUFFIX = b"tests"  # in place of /etc/swift/swift.conf
    (folder / "devices" / "disk").mkdir(parents=True)
    backends = {"account": account_app, "container": container_app, "object": object_app}
    sockets = {name: eventlet.listen(("127.0.0.1", 0)) for name in backends}
    for name, socket in sockets.items():
        _write_ring(folder / f"{name}.ring.gz", socket.getsockname()[1])
    conf = {
        "devices": str(folder / "devices"), "swift_dir": str(folder), "mount_check": "false",
        "disable_fallocate": "true", "log_level": "CRITICAL",
    }  # fmt: skip
    for name, app in backends.items():
        eventlet.spawn(eventlet.wsgi.server, sockets[name], app(conf), log_output=False)
    proxy_conf = folder / "proxy.conf"
    proxy_conf.write_text(config)
    return loadapp(str(proxy_conf))


def _write_ring(path: Path, port: int) -> None:
    """A ring of one disk, one copy."""
    ring = RingBuilder(4, 1, 0)
    at = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    ring.add_dev({"region": 1, "zone": 1, "device": "disk", "weight": 1.0, **at})
    ring.rebalance()
    ring.get_ring().save(str(path))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), *sys.argv[2:6])
