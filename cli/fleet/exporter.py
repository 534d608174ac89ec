"""``scenefleet exporter``: runs the exporter in the foreground."""

from __future__ import annotations

import signal
import sys

from shared.logs import configure_logs
from shared.settings import get_settings


def run() -> None:
    """Serve until a signal comes; says where it listens.

    Raises:
        InvalidRequest: no server is configured.
        Outage: METRICS_HOST is not an address of this machine.
    """
    from worker.telemetry import exporter

    settings = get_settings()
    configure_logs(settings)
    # Before the first thread, which inherits this: the signal comes to the wait below.
    ends = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    server = exporter.serve(settings)
    sys.stdout.write(f"http://{settings.metrics_host}:{server.port}/metrics\n")
    sys.stdout.flush()
    signal.sigwait(ends)
