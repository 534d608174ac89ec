"""Reads the configuration from environment variables into one frozen object. No other module reads ``os.environ``.

A URL that is not set falls back to the embedded services that ``scenefleet up`` runs on this machine: their
addresses are in ``$SCENEFLEET_HOME/run.json`` while they run. ``docs/settings.md`` is generated from this file
(``python -m shared.settings``).
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from .errors import InvalidRequest

GiB = 2**30
RUN_FILE = "run.json"
#: Maximum number of users with a weight: a claim reads each of them.
MAX_WEIGHTS = 1000
MAX_WEIGHT = 1000.0


class Settings(BaseModel):
    """Every setting, with its default; the environment variable is the upper-case name (or the stated alias).

    An empty variable counts as not set. Keyword arguments, in any case, take precedence over the environment.
    This is not pydantic-settings because its import takes as long as everything else that ``scenefleet --help`` needs.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", validate_default=True, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        environment = {name.upper(): value for name, value in os.environ.items() if value != ""}
        given = {name.upper(): value for name, value in values.items()}
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            key = field.alias or name
            # A setting with an alias is not read by its own name: HOME is somebody else's.
            for source, variable in ((environment, key), (given, name), (given, key)):
                if variable.upper() in source:
                    found[key] = source[variable.upper()]
        super().__init__(**found)

    # --- servers
    postgres_url: str = ""
    """Postgres with pgvector, `postgresql://user:password@host:5432/name`. Empty: the embedded Postgres."""
    postgres_admin_url: SecretStr = SecretStr("")
    """The same Postgres with an administrator's user. Only `scenefleet db bootstrap` reads it; nodes never need it."""
    redis_url: str = ""
    """Redis for the broker and for short-lived results, `redis://:password@host:6379/0` or `unix://:password@/path/of/redis.sock?db=0`. Empty: the embedded Redis."""
    broker_url: str = ""
    """RabbitMQ for the queues, `amqp://user:password@host:5672/vhost` or `amqps://`. Empty: REDIS_URL, which has results and states in any case."""
    storage_backend: Literal["local", "minio"] = "local"
    """Storage of objects: `local` (a folder) or `minio` (any S3 server)."""
    storage_root: Path | None = None
    """Folder of the `local` storage. Default `$SCENEFLEET_HOME/storage`."""
    storage_endpoint: str = ""
    """`host:port` of the S3 server, for `minio`."""
    storage_public_endpoint: str = ""
    """Address of the S3 server for browsers, used in presigned URLs. Empty: `STORAGE_ENDPOINT`."""
    storage_access_key: str = ""
    """S3 access key."""
    storage_secret_key: SecretStr = SecretStr("")
    """S3 secret key."""
    storage_secure: bool = False
    """Use https to reach the S3 server."""
    storage_region: str = "us-east-1"
    """S3 region, part of every signature."""
    storage_bucket_uploads: str = "uploads"
    """Bucket of the source videos."""
    storage_bucket_sidecars: str = "sidecars"
    """Bucket of sidecar JSON and keyframes."""
    storage_bucket_tmp: str = "tmp"
    """Bucket of temporary objects (audio while a run lasts)."""

    # --- requests to models
    batch_size: int = Field(32, ge=1, le=1024)
    """Maximum number of items (texts, pictures) of all callers that a model computes in one batch of requests."""
    batch_tokens: int = Field(8192, ge=1)
    """Maximum number of estimated tokens of one batch of requests; a longer text is computed alone."""
    batch_timeout_ms: int = Field(0, ge=0, le=1000)
    """Time that an idle model waits for more requests before it computes a batch that is not full, milliseconds."""
    online_queue_items: int = Field(10_000, ge=1)
    """Maximum number of items that wait in one queue of requests; further requests are refused with `Overloaded`."""
    online_queue_tokens: int = Field(4_000_000, ge=1)
    """Maximum number of estimated tokens that wait in one queue of requests."""
    online_user_items: int = Field(3000, ge=1)
    """Maximum number of items of one user that wait in one queue of requests, in single requests or in large ones; also of all callers together that do not reserve them."""
    request_models: str = ""
    """Models, comma-separated, that callers of `/v1` may name besides the active ones."""

    # --- this machine
    home: Path = Field(Path("~/.scenefleet"), alias="SCENEFLEET_HOME")
    """Home folder: embedded services, logs and local storage."""
    profile: Literal["lite", "full"] = Field("lite", alias="SCENEFLEET_PROFILE")
    """Model profile: `lite` (models from PyPI, CPU) or `full`."""
    nodes: str = Field("media,asr,text,vision,face,ocr,housekeeping,search,api", alias="SCENEFLEET_NODES")
    """Nodes that `scenefleet up` runs on this machine: families, comma-separated, `family:N` for N processes, `family@0+1` for one process on each of these GPUs. Families without a model in the profile are omitted. `api` stands for the HTTP API and the page."""
    family: str = Field("", alias="SCENEFLEET_FAMILY")
    """Family of this node. `scenefleet node` sets it; don't set it yourself."""
    user_id: str = Field("local", alias="SCENEFLEET_USER")
    """User for whom the `scenefleet` command acts."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="SCENEFLEET_LOG_LEVEL")
    """Log level of nodes."""
    log_format: Literal["json", "console"] = Field("json", alias="SCENEFLEET_LOG_FORMAT")
    """Format of log lines: `json`, or `console` for reading in a terminal."""
    log_payloads: bool = False
    """Show the contents of requests and answers in logs, task events and Flower: names, queries, transcripts, file names. Use it only on a test system without personal data."""

    # --- metrics and health
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port on which each node, and `scenefleet exporter`, serves `/metrics`, `/livez` and `/readyz`. 0, or a taken port: a free one. Empty: nodes serve nothing, the exporter uses 9464."""
    metrics_host: str = Field("127.0.0.1", min_length=1)
    """Address on which metrics are served. They contain no personal data, but anyone who reaches the port reads them."""
    metrics_users: int = Field(0, ge=0, le=1000)
    """Number of users whose device time the exporter shows by their ids, those with the most; the others are shown in sum. 0: no ids."""

    # --- the HTTP API
    api_host: str = "127.0.0.1"
    """Address on which `scenefleet api` listens. Any other than a loopback address needs something that says who asks: API_KEYS, OIDC_ISSUER or API_USER_HEADER."""
    api_port: int = Field(8080, ge=0, le=65535)
    """Port of the API. 0: a free one, printed at the start."""
    api_keys: bool = False
    """Require an API key (`scenefleet keys add`) in `Authorization: Bearer`."""
    api_user_header: str = Field("", pattern=r"^[A-Za-z0-9-]{0,64}$")
    """Header in which a trusted proxy names the user it has authenticated, for example `X-Forwarded-User`. Empty: no proxy is trusted."""
    api_trusted_proxies: str = ""
    """Addresses and networks of trusted proxies, comma-separated, for example `10.0.0.0/8,::1`. The header of any other client is refused."""
    api_operators: str = ""
    """Users of the proxy or of OIDC who are operators (models, fleet), comma-separated. A key is an operator's if it was made with `--operator`; the local user is one."""
    api_cors_origins: str = ""
    """Origins whose pages may call the API, comma-separated, for example `https://example.com`. Empty: only the API's own page."""
    api_rate_per_minute: int = Field(6000, ge=0)
    """Maximum number of requests per minute of a key or user; requests with a wrong key or token: a hundredth of it per address. 0: no limit."""
    api_max_connections: int = Field(2000, ge=10)
    """Maximum number of open connections of an API process; further ones are closed."""
    api_slow_client_s: float = Field(20.0, gt=0)
    """Maximum time in which a client has to send a request's headers, or the body of a small request, seconds."""
    api_public_url: str = Field("", pattern=r"^(https?://[^/?#@\s]+)?$")
    """Address at which browsers reach the API, `https://films.example.com`: the first part of the redirect URI for OIDC. Empty: as each request names it."""
    oidc_issuer: str = Field("", pattern=r"^(https?://[^?#@\s]+)?$")
    """OpenID provider whose users may sign in and whose tokens are accepted, as its tokens name it (`iss`). `http://` only on this machine. Empty: none."""
    oidc_client_id: str = ""
    """This API as the provider knows it. Its redirect URI there: `/api/v1/session/oidc/callback` under API_PUBLIC_URL. Empty: no sign-in, bearer tokens only."""
    oidc_client_secret: SecretStr = SecretStr("")
    """Secret of OIDC_CLIENT_ID. Empty: a public client (PKCE is always used)."""
    oidc_audience: str = ""
    """Audience (`aud`) of bearer tokens that are accepted besides those for OIDC_CLIENT_ID."""
    oidc_user_claim: str = Field("sub", min_length=1)
    """Claim of a token that names the user. `email` counts only with `email_verified`."""
    oidc_scopes: str = "openid"
    """Scopes that a sign-in asks for, separated by spaces."""
    oidc_session_s: int = Field(12 * 3600, ge=60, le=30 * 24 * 3600)
    """Time after which a browser has to sign in by OIDC again, seconds."""

    upload_ttl_s: float = Field(3 * 24 * 3600.0, ge=60)
    """Time in which an upload through the API must be complete, seconds; then what was received is removed."""
    query_picture_ttl_s: float = Field(24 * 3600.0, ge=60)
    """Time for which the API keeps a picture that was sent to be searched for, seconds."""

    # --- models
    models_dir: Path = Path("~/.scenefleet/models")
    """Folder of downloaded and supplied model weights, and of `models.lock`."""
    models_file: Path | None = Field(None, alias="SCENEFLEET_MODELS_FILE")
    """Path of the model catalogue. Default: the shipped `models.yaml`."""
    hf_home: Path | None = None
    """Cache folder of Hugging Face libraries."""
    hf_endpoint: str = ""
    """URL of a model hub for `scenefleet models pull`. Empty: Hugging Face."""
    asr_model: str = ""
    """Name of the speech model in the catalogue; `whisper-` may be omitted. Empty: the profile's model."""
    asr_device: Literal["", "auto", "cpu", "cuda"] = ""
    """Device of the speech model: `auto`, `cpu` or `cuda`. Empty: the catalogue's."""
    text_model: str = ""
    """Name of the text model in the catalogue. Empty: the profile's model."""
    vision_model_name: str = ""
    """Name of the vision model in the catalogue. Empty: the profile's model."""
    face_detector: str = ""
    """Name of the face model in the catalogue. Empty: the profile's model."""
    ocr_model: str = ""
    """Name of the model for on-screen text in the catalogue. Empty: the profile's model."""
    gpus: str = Field("", alias="SCENEFLEET_GPUS")
    """GPUs of this node, one per process, comma-separated: index, UUID (`GPU-...`) or `MIG-...`. A named GPU must exist. Empty: the GPUs that CUDA lists, otherwise the CPU."""
    model_memory_mb: int = Field(0, ge=0, alias="WORKER_MODEL_MEMORY_MB")
    """Maximum memory of the models in one process, MB; the least recently used models are evicted. 0: no limit."""
    vision_labels: Path | None = Field(None, alias="VISION_LABELS")
    """Text file with the labels for tags, one per line. Default: a shipped list."""
    model_threads: int = Field(0, ge=0, le=256, alias="SCENEFLEET_MODEL_THREADS")
    """CPU threads of a model process. 0: one per core."""

    # --- features (each off and on again without loss)
    feature_semantic_search: bool = True
    """Embed transcripts, and enable search by meaning."""
    feature_vision: bool = True
    """Embed keyframes, and enable visual search."""
    feature_face: bool = True
    """All features about faces."""
    feature_face_detection: bool = True
    """Find faces in videos."""
    feature_face_enrollment: bool = True
    """Accept new people and photos. Off: existing people are kept and found."""
    feature_rendition: bool = True
    """Make an MP4 of videos that browsers don't play."""

    # --- people
    face_similarity_threshold: float = Field(0.6, ge=-1, le=1)
    """Minimum cosine similarity between a face and a profile (models compared by cosine)."""
    face_distance_threshold: float = Field(0.55, gt=0)
    """Maximum Euclidean distance between a face and a profile (models compared by L2, such as dlib)."""
    face_margin: float = Field(0.05, ge=0, le=1)
    """Minimum difference in similarity between the best and the second-best person."""
    face_min_side_px: int = Field(48, ge=1)
    """Minimum size of the face in a person's photo, pixels."""
    face_min_sharpness: float = Field(8.0, ge=0)
    """Minimum sharpness of the face in a person's photo: variance of its Laplacian at about 112 px."""
    face_min_quality: float = Field(0.0, ge=0)
    """Minimum quality of the face in a person's photo, if the model measures it (AdaFace's feature norm)."""
    feature_ocr: bool = True
    """Read on-screen text in keyframes, and search it."""

    upload_link_s: int = Field(900, ge=1, le=604_800)
    """Lifetime of upload URLs for photos, seconds, unless a request sets `expires_s`. An erasure checks once more when the last one has expired."""

    # --- limits on what is accepted
    max_video_bytes: int = Field(20 * GiB, gt=0)
    """Maximum size of a source file, bytes."""
    max_video_duration_s: float = Field(12 * 3600.0, gt=0)
    """Maximum duration of a video, seconds."""
    max_video_side_px: int = Field(8192, gt=0)
    """Maximum width or height of a video, pixels."""
    max_video_fps: float = Field(240.0, gt=0)
    """Maximum frame rate, frames per second."""
    max_video_streams: int = Field(16, gt=0)
    """Maximum number of streams in a file."""
    max_video_scenes: int = Field(50_000, gt=0)
    """Maximum number of scenes in a video."""
    max_video_pixels: int = Field(6_000_000_000_000, gt=0)
    """Maximum number of decoded pixels in a video, over all its pictures: 26 h of 1920x1080 or 6 h of 3840x2160, at 30 frames per second."""
    max_video_pixels_per_s: int = Field(1_100_000_000, gt=0)
    """Maximum number of decoded pixels per second of a video, beyond the first 2 gigapixels: 7680x4320 at 33 frames per second."""
    max_video_pixels_per_byte: int = Field(100_000, gt=0)
    """Maximum number of decoded pixels per byte of compressed pictures, beyond the first 2 gigapixels. A still screen of 1920x1080 needs up to 70,000."""
    max_video_keyframes: int = Field(100_000, gt=0)
    """Maximum number of keyframes of a video."""
    max_video_keyframe_bytes: int = Field(4 * GiB, gt=0)
    """Maximum total size of the keyframes of a video, bytes."""
    min_audio_rate_hz: int = Field(4_000, gt=0)
    """Minimum audio sample rate, hertz."""
    max_sound_after_pictures_s: float = Field(1800.0, ge=0)
    """Maximum duration of sound after the last picture of a video, seconds."""
    media_memory_mb: int = Field(768, ge=256)
    """Maximum memory of the decoding process, MB. A video that needs more is refused. The default is enough for 3840x2160 in every accepted codec; 7680x4320 needs 1024 in H.264 and 2048 in HEVC, VP9 or AV1."""
    media_threads: int = Field(0, ge=0, le=64)
    """Threads that decode a video. 0: one per core, at most 8. Fewer are used if more don't fit in MEDIA_MEMORY_MB."""
    media_cpu_base_s: float = Field(60.0, gt=0)
    """Maximum CPU time of decoding any file, seconds; also the maximum between two packets. A video that exceeds it is refused and not retried."""
    media_cpu_per_s: float = Field(10.0, ge=0)
    """Maximum CPU time of decoding per second of the video, in addition to MEDIA_CPU_BASE_S, seconds."""
    max_request_pixels: int = Field(100_000_000, gt=0)
    """Maximum number of pixels in all pictures of a request; each picture counts once."""
    max_jpeg_scans: int = Field(50, gt=0)
    """Maximum number of scans in a progressive JPEG; each scan costs a pass over all pixels. Encoders write 1 to 30."""
    split_mode: Literal["exact", "fast", "accurate"] = "exact"
    """`exact` decodes every picture, and a network judges doubtful cuts; `fast` skips non-reference pictures and asks no network; with `accurate` the network reads every picture: several times the CPU time."""
    split_min_confidence: float = Field(0.5, ge=0, le=1)
    """Minimum probability of a cut, 0..1. A higher value gives fewer scenes, a lower value more."""
    split_span_s: float = Field(300.0, ge=0)
    """A longer video is split in spans of about this length, seconds, by several media processes side by side, with the same result; 0: never. Not with `SPLIT_MODE=fast`."""

    # --- the ledger
    lease_s: float = Field(60.0, gt=0)
    """Duration of a lease, seconds: a job whose lease has expired goes to another worker."""
    heartbeat_s: float = Field(15.0, gt=0)
    """Interval at which a running job renews its lease, seconds."""
    reconcile_s: float = Field(3.0, gt=0)
    """Interval at which a node of the fleet reconciles: frees expired leases and replaces lost wake-up messages, seconds."""
    max_failures: int = Field(3, ge=1, le=20)
    """Errors after which a job fails permanently. (Deaths of its process have a rule of their own: docs/design.md.)"""
    max_outages: int = Field(20, ge=1)
    """Outages of a server or losses of a node after which a job fails permanently."""
    backoff_s: float = Field(2.0, gt=0)
    """First delay before a retry, seconds; it doubles each time."""
    backoff_max_s: float = Field(60.0, gt=0)
    """Maximum delay before a retry, seconds."""
    defer_max_s: float = Field(300.0, gt=0)
    """Maximum pause of a deferred job, seconds; the pause doubles each time."""
    database_wait_s: float = Field(20.0, ge=0)
    """Maximum time for which a task waits for Postgres before it returns its message to the queue, seconds."""
    database_lock_s: float = Field(10.0, gt=0)
    """Maximum wait for a row that another transaction has locked, seconds (`lock_timeout`)."""
    database_statement_s: float = Field(60.0, gt=0)
    """Maximum duration of a statement of a request, seconds (`statement_timeout`)."""
    database_job_statement_s: float = Field(900.0, gt=0)
    """Maximum duration of a statement of a job, seconds."""
    database_build_s: float = Field(21_600.0, gt=0)
    """Maximum duration of building a vector index, seconds, including the wait for older transactions."""
    database_idle_s: float = Field(30.0, gt=0)
    """Idle time inside a transaction after which Postgres ends the session, seconds (`idle_in_transaction_session_timeout`)."""
    database_peer_s: float = Field(30.0, ge=3)
    """Time without a network response after which either end closes a connection to Postgres, seconds (TCP keepalives and `tcp_user_timeout`)."""
    tmp_ttl_s: float = Field(24 * 3600.0, gt=0)
    """Age after which temporary objects are removed, seconds."""
    soft_shutdown_s: float = Field(10.0, ge=0)
    """Time that a stopping node gives its running job to finish, seconds."""
    visibility_timeout_s: int = Field(3600, gt=0)
    """Time after which an unacknowledged message is delivered again (harmless), seconds."""
    result_expires_s: int = Field(600, gt=0)
    """Time for which Redis keeps the answer to a request, seconds."""

    # --- fair shares of users
    usage_half_life_s: float = Field(3600.0, ge=1)
    """Half-life of device time, seconds: after this time, used device time counts half when a queue chooses the next user."""
    user_weights: str = ""
    """Shares of users other than 1, for example `alice=2,bob=0.5`: while both wait, a user with 2 gets twice the device time of a user with 1. At most 1,000 users."""
    fleet_weight: float = Field(0.25, gt=0, le=1000)
    """Share of the fleet's own work (a switch of models); a user has 1."""
    priority_ageing_s: float = Field(300.0, gt=0)
    """Time after which the priority of a waiting job among its user's jobs increases by one, seconds."""
    user_max_open_videos: int = Field(0, ge=0)
    """Maximum number of videos of a user that are waiting or in progress; further ones are refused. 0: no limit."""
    user_max_running_jobs: int = Field(0, ge=0)
    """Maximum number of jobs of a user that run at once in a queue; further ones wait. 0: no limit."""
    jobs_retention_s: float = Field(30 * 24 * 3600.0, gt=0)
    """Time after which ended jobs of housekeeping, and runs that were replaced by later ones, are removed from the ledger, seconds."""

    # --- webhooks and traces
    webhook_allow_http: bool = False
    """Accept webhooks with http URLs. Their bodies can be read on the way."""
    webhook_allow_private: bool = False
    """Send webhooks to private, loopback and link-local addresses. Then every user can reach servers of your network."""
    webhook_backoff_s: float = Field(5.0, gt=0)
    """First pause after a failed delivery of a webhook, seconds; each further one is four times as long, at most 4 hours."""
    webhook_retry_s: float = Field(24 * 3600.0, gt=0)
    """Time for which a delivery of a webhook is tried, seconds."""
    webhook_retention_s: float = Field(7 * 24 * 3600.0, gt=0)
    """Time for which a delivery of a webhook is listed and can be sent again after WEBHOOK_RETRY_S, seconds."""
    otel_exporter_otlp_endpoint: str = ""
    """URL of an OpenTelemetry collector that takes OTLP over HTTP, for example `http://collector:4318`. Empty: no traces. Needs the extra `tracing`; its packages read other `OTEL_*` variables, too."""

    # --- search
    search_text_weight: float = Field(0.5, ge=0)
    """Weight of the text similarity."""
    search_vision_weight: float = Field(0.35, ge=0)
    """Weight of the vision similarity."""
    search_people_weight: float = Field(0.3, ge=0)
    """Weight of the confidence with which the requested persons were recognised."""
    search_keyword_weight: float = Field(0.2, ge=0)
    """Weight of spoken words in a hybrid search."""
    search_lexical_weight: float = Field(0.2, ge=0)
    """Weight of the lexical similarity in a hybrid search."""
    search_screen_weight: float = Field(0.2, ge=0)
    """Weight of on-screen text in a hybrid search."""
    search_deadline_s: float = Field(5.0, gt=0, le=50)
    """Maximum time for which a search waits for its models, seconds; it then answers without the missing ones."""
    search_candidates: int = Field(150, ge=10, le=1000)
    """Number of scenes that each retriever of a search proposes for its first pages."""
    search_max_depth: int = Field(10_000, ge=100, le=100_000)
    """Number of scenes that each retriever of a search proposes at most, for its last pages. An answer that ends there says so."""
    search_cutoff: bool = True
    """Leave out scenes that no retriever finds similar, unless the search has a `min_score`. `cutoff` in models.yaml says what is similar."""
    search_link_s: int = Field(3600, ge=1, le=604_800)
    """Lifetime of the keyframe URLs in an answer, seconds."""
    search_default_results: int = Field(20, ge=1)
    """Number of hits in an answer if a request sets no limit."""
    search_max_results: int = Field(50, ge=1, le=1000)
    """Maximum number of hits in an answer."""
    search_ef: int = Field(200, ge=10, le=1000, alias="SEARCH_EF_SEARCH")
    """Number of candidates in an approximate search (`hnsw.ef_search`)."""
    search_exact_rows: int = Field(20_000, ge=0)
    """Maximum number of vectors for an exact scan."""
    search_kept_s: int = Field(60, ge=0, le=600)
    """Time for which the answer of a search is given again while nothing of its user changes, seconds. 0: not at all."""
    embedding_cache_ttl_s: int = Field(24 * 3600, ge=0)
    """Time for which the vectors of queries are kept, seconds. 0: not at all."""
    embedding_cache_size: int = Field(10_000, ge=1)
    """Maximum number of vectors of queries in Redis, about 4 KB each."""
    embedding_cache_max_chars: int = Field(500, ge=1)
    """Maximum length of a query whose vectors are kept, characters."""
    warm_queries: Path | None = None
    """Text file of common queries, one per line: a node embeds them at its start. Empty: none."""

    @field_validator(
        "home", "models_dir", "storage_root", "models_file", "hf_home", "vision_labels", "warm_queries",
        mode="after",
    )  # fmt: skip
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("user_weights", mode="after")
    @classmethod
    def _check_weights(cls, value: str) -> str:
        parse_weights(value)
        return value

    @property
    def weights(self) -> dict[str, float]:
        """USER_WEIGHTS: user -> weight."""
        return parse_weights(self.user_weights)

    @field_validator("redis_url", mode="after")
    @classmethod
    def _as_redis_writes_it(cls, value: str) -> str:
        """Accept a Unix socket URL in Celery's form, too."""
        parts = urlsplit(value)
        if parts.scheme != "redis+socket":
            return value
        query = parts.query.replace("virtual_host=", "db=") or "db=0"
        return f"unix://{parts.netloc}{parts.path}?{query}"

    @field_validator("broker_url")
    @classmethod
    def _is_rabbitmq(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("amqp", "amqps"):
            raise ValueError(
                "it must begin with amqp:// or amqps://; for Redis leave it empty and set REDIS_URL"
            )
        return value

    @property
    def says_who_asks(self) -> bool:
        """Whether callers of the API have to say who they are; otherwise all are the local user."""
        return bool(self.api_keys or self.api_user_header or self.oidc_issuer)

    @property
    def gpu_list(self) -> tuple[str, ...]:
        """SCENEFLEET_GPUS, one device per process of the node."""
        return tuple(filter(None, (device.strip() for device in self.gpus.split(","))))

    @property
    def storage_dir(self) -> Path:
        return self.storage_root or self.home / "storage"

    @property
    def run_file(self) -> Path:
        return self.home / RUN_FILE

    @property
    def database_url(self) -> str:
        """The URL for SQLAlchemy and Alembic, with the psycopg 3 driver."""
        url = self.require("postgres_url")
        scheme, separator, rest = url.partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator:
            raise InvalidRequest(f"POSTGRES_URL must begin with postgresql://, not {scheme!r}: correct it")
        return "postgresql+psycopg://" + rest

    def require(self, name: str) -> str:
        """The value of a setting that has no usable default.

        Raises:
            InvalidRequest: it is not set and no embedded service runs.
        """
        value = str(getattr(self, name))
        if not value:
            raise InvalidRequest(
                f"{name.upper()} is not set and no embedded service runs in {self.home}: set it, or start `scenefleet up`"
            )
        return value


def parse_weights(value: str) -> dict[str, float]:
    """Weights by user, from ``alice=2,bob=0.5``.

    Raises:
        ValueError: an item is not ``user=weight`` with a weight above 0, a user appears twice, or there are too many users.
    """
    weights: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in value.split(","))):
        user, separator, number = (part.strip() for part in item.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not user or not separator or not 0 < weight <= MAX_WEIGHT:
            raise ValueError(f"{item!r} is not user=weight with a weight above 0 and at most {MAX_WEIGHT:g}")
        if user in weights:
            raise ValueError(f"{user} appears twice")
        weights[user] = weight
    if len(weights) > MAX_WEIGHTS:
        raise ValueError(f"it names {len(weights)} users: at most {MAX_WEIGHTS} may have a weight")
    return weights


def load_settings() -> Settings:
    """Read the environment, then fill unset URLs from the embedded services' run file.

    Raises:
        InvalidRequest: a value is not acceptable; names the variable and the value.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(str(part) for part in first["loc"]).upper()
        value = first.get("input")
        shown = hide_password(value) if name.endswith("_URL") and isinstance(value, str) else value
        raise InvalidRequest(f"{name}={shown!r} is not acceptable: {first['msg']}") from None
    missing = [name for name in ("postgres_url", "redis_url") if not getattr(settings, name)]
    if missing and settings.run_file.is_file():
        run: dict[str, Any] = json.loads(settings.run_file.read_text())
        settings = settings.model_copy(update={name: run[name] for name in missing if name in run})
    return settings


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """This process's settings, read once."""
    return load_settings()


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a process we start: ours plus ``extra``."""
    return {**os.environ, **extra}


def process_environment(name: str) -> str | None:
    """A variable of this process that a library reads, for messages."""
    return os.environ.get(name)


def set_process_environment(name: str, value: str) -> None:
    """Set a variable that a library reads in this process (the one place that writes ``os.environ``)."""
    os.environ[name] = value


def hide_password(url: str) -> str:
    """The URL with its password replaced, for logs and messages."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    netloc = parts.netloc.replace(f":{parts.password}@", ":***@")
    return urlunsplit(parts._replace(netloc=netloc))


def settings_table() -> str:
    """The Markdown table of every environment variable."""
    rows = ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = (
            ""
            if default in ("", None)
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{(field.alias or name).upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def main() -> None:
    """Write ``docs/settings.md``."""
    text = (
        "# Settings\n\nGenerated from `shared/settings.py` by `python -m shared.settings`; do not edit.\n\n"
    )
    Path("docs/settings.md").write_text(text + settings_table() + "\n")


if __name__ == "__main__":
    main()
