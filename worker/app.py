"""The Celery application: ``celery -A worker.app worker|inspect|control|flower``.

Configured by REDIS_URL and POSTGRES_URL alone. Importing it starts nothing and loads no ML engine.
"""

from __future__ import annotations

from celery import Celery, signals
from kombu import Queue

from shared import graph, routing
from shared.broker import HidingAMQP, TracingAMQP, broker_config
from shared.logs import configure_logs
from shared.settings import get_settings
from worker import control
from worker.broker.celery_patches import FleetEvents, HidingTask, install_transport

_settings = get_settings()

install_transport()
# The command line needs the remote commands too.
control.install()
app = Celery(
    "scenefleet",
    # Arguments and results stay out of messages' headers, and of events; LOG_PAYLOADS leaves them in.
    amqp=TracingAMQP if _settings.log_payloads else HidingAMQP,
    events=FleetEvents,
    task_cls=HidingTask,
    include=[
        "tasks.jobs",
        "tasks.video",
        "tasks.models",
        "tasks.fleet",
        "tasks.keys",
        "tasks.webhooks",
        "tasks.asr",
        "tasks.text",
        "tasks.vision",
        "tasks.face",
        "tasks.people",
        "tasks.search",
    ],
)
# Answers also go to the reply list that a message names.
app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "worker.broker.replies:ReplyingBackend")
app.conf.update(
    broker_config(
        # Without a URL and an embedded Redis, connections fail, not the import.
        _settings.redis_url or "redis://redis-url-is-not-set:6379/0",
        broker_url=_settings.broker_url,
        visibility_timeout_s=_settings.visibility_timeout_s,
        result_expires_s=_settings.result_expires_s,
    ),
    worker_prefetch_multiplier=1,
    # Covers the load of a model in a replacement child, which the default of 4 s would kill again and again.
    worker_proc_alive_timeout=600,
    worker_soft_shutdown_timeout=_settings.soft_shutdown_s,
    worker_enable_soft_shutdown_on_idle=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # A recycled child would load its model again.
    worker_max_tasks_per_child=None,
    worker_send_task_events=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_track_started=False,
    task_send_sent_event=False,
    task_queues=[Queue(name) for name in routing.QUEUES],
)
if _settings.family:
    # A node without a stage that the others have would fail that stage's jobs.
    graph.PLUGINS.require_all()
    # A node waits on a private queue until its model is loaded (worker/boot.py).
    app.conf.task_queues = [*app.conf.task_queues, Queue(routing.gate_queue(_settings.family))]
    # By name: its modules import this one.
    app.steps["worker"].add("worker.boot:BecomeNode")


@signals.setup_logging.connect
def _setup_logging(**_: object) -> None:
    configure_logs(_settings)
