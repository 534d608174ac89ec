"""The configuration: environment variables in, one frozen object out. Nobody else reads ``os.environ``.

A URL that is not set falls back to the embedded services that ``scenefleet up`` runs on this machine: their
addresses stand in ``$SCENEFLEET_HOME/run.json`` while they run. ``docs/settings.md`` is generated from this file
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
#: Users who may have a weight of their own: a claim looks at each of them.
MAX_WEIGHTS = 1000
MAX_WEIGHT = 1000.0


class Settings(BaseModel):
    """Every setting, with its default; the environment variable is the upper-case name (or the stated alias).

    An empty variable counts as not set. Values given by name, in whichever case, come before the environment's.
    Not pydantic-settings: to import it takes as long as everything else that ``scenefleet --help`` needs.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True)

    def __init__(self, **values: Any) -> None:
        given = {name.upper(): value for name, value in os.environ.items() if value != ""}
        given |= {name.upper(): value for name, value in values.items()}
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            key = field.alias or name
            for variable in (name.upper(), key.upper()):
                if variable in given:
                    found[key] = given[variable]
        super().__init__(**found)

    # --- servers
    postgres_url: str = Field(
        "",
        description="Postgres with pgvector, `postgresql://user:password@host:5432/name`. Empty: the embedded one.",
    )
    postgres_admin_url: SecretStr = Field(
        SecretStr(""),
        description="The same Postgres for an administrator, read by `scenefleet db bootstrap` alone: nodes never need it.",
    )
    redis_url: str = Field(
        "",
        description="Redis used as broker and for short-lived results, `redis://:password@host:6379/0` or `unix://:password@/path/of/redis.sock?db=0`. Empty: the embedded one.",
    )
    storage_backend: Literal["local", "minio"] = Field(
        "local",
        description="Where objects live: `local` (a folder) or `minio` (any S3 server).",
    )
    storage_root: Path | None = Field(
        None,
        description="Folder of the `local` storage. Default `$SCENEFLEET_HOME/storage`.",
    )
    storage_endpoint: str = Field("", description="`host:port` of the S3 server, for `minio`.")
    storage_public_endpoint: str = Field(
        "",
        description="The same S3 server as browsers reach it, for presigned URLs. Empty: `STORAGE_ENDPOINT`.",
    )
    storage_access_key: str = Field("", description="S3 access key.")
    storage_secret_key: SecretStr = Field(SecretStr(""), description="S3 secret key.")
    storage_secure: bool = Field(False, description="Use https to reach the S3 server.")
    storage_region: str = Field("us-east-1", description="S3 region, part of every signature.")
    storage_bucket_uploads: str = Field("uploads", description="Bucket of the source videos.")
    storage_bucket_sidecars: str = Field("sidecars", description="Bucket of sidecar JSON and keyframes.")
    storage_bucket_tmp: str = Field(
        "tmp", description="Bucket of temporary objects (audio while a run lasts)."
    )

    # --- this machine
    home: Path = Field(
        Path("~/.scenefleet"),
        alias="SCENEFLEET_HOME",
        description="Folder of the embedded services, logs and local storage.",
    )
    profile: Literal["lite", "full"] = Field(
        "lite",
        alias="SCENEFLEET_PROFILE",
        description="Which models: `lite` (from PyPI, CPU) or `full`.",
    )
    nodes: str = Field(
        "media,asr,text,vision,face,ocr,housekeeping,search",
        alias="SCENEFLEET_NODES",
        description="Which nodes `scenefleet up` runs here: families, comma-separated, `family:N` for N processes, `family@0+1` for one process on each of these GPUs. A family without a model in the profile is left out.",
    )
    family: str = Field(
        "",
        alias="SCENEFLEET_FAMILY",
        description="Family of this node. Set by `scenefleet node`, not by hand.",
    )
    user_id: str = Field(
        "local",
        alias="SCENEFLEET_USER",
        description="The user the `scenefleet` command acts for.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", alias="SCENEFLEET_LOG_LEVEL", description="Log level of nodes."
    )
    log_format: Literal["json", "console"] = Field(
        "json",
        alias="SCENEFLEET_LOG_FORMAT",
        description="Log lines as JSON or for people.",
    )
    log_payloads: bool = Field(
        False,
        description="Let logs, task events and Flower show what requests hold and return: names, queries, transcripts, file names. For a test system without personal data only.",
    )

    # --- models
    models_dir: Path = Field(
        Path("~/.scenefleet/models"),
        description="Folder of downloaded and supplied model weights, and of `models.lock`.",
    )
    models_file: Path | None = Field(
        None,
        alias="SCENEFLEET_MODELS_FILE",
        description="The catalogue. Default: the shipped `models.yaml`.",
    )
    hf_home: Path | None = Field(None, description="Cache folder of Hugging Face libraries.")
    hf_endpoint: str = Field(
        "", description="Another model hub than Hugging Face's, for `scenefleet models pull`."
    )
    asr_model: str = Field(
        "",
        description="Name of the speech model in the catalogue, `whisper-` may be left out. Empty: the profile's.",
    )
    asr_device: Literal["", "auto", "cpu", "cuda"] = Field(
        "", description="Device of the speech model: `auto`, `cpu`, `cuda`. Empty: the catalogue's."
    )
    text_model: str = Field("", description="Name of the text model in the catalogue. Empty: the profile's.")
    vision_model_name: str = Field(
        "",
        description="Name of the vision model in the catalogue. Empty: the profile's.",
    )
    face_detector: str = Field(
        "", description="Name of the face model in the catalogue. Empty: the profile's."
    )
    ocr_model: str = Field(
        "", description="Name of the model of on-screen text in the catalogue. Empty: the profile's."
    )
    gpus: str = Field(
        "",
        alias="SCENEFLEET_GPUS",
        description="GPUs of this node, one per process, comma-separated: index, UUID (`GPU-...`) or `MIG-...`. A GPU that is named must be there. Empty: what CUDA shows, or the CPU.",
    )
    model_memory_mb: int = Field(
        0,
        ge=0,
        alias="WORKER_MODEL_MEMORY_MB",
        description="Memory one process may fill with models; the least recently used makes room. 0: no limit.",
    )
    vision_labels: Path | None = Field(
        None,
        alias="VISION_LABELS",
        description="Text file of labels, one a line, that pictures are tagged with. Default: a shipped list.",
    )
    model_threads: int = Field(
        0,
        ge=0,
        le=256,
        alias="SCENEFLEET_MODEL_THREADS",
        description="CPU threads of one model process. 0: all cores.",
    )

    # --- features (each off and on again without loss)
    feature_semantic_search: bool = Field(True, description="Embed transcripts and search by meaning.")
    feature_vision: bool = Field(True, description="Embed keyframes and search by sight.")
    feature_face: bool = Field(True, description="Everything about faces.")
    feature_face_detection: bool = Field(True, description="Find faces in videos.")
    feature_face_enrollment: bool = Field(
        True, description="Take new people and photos. Off: those that are there stay and are found."
    )

    # --- people
    face_similarity_threshold: float = Field(
        0.6, ge=-1, le=1, description="Least cosine of a face and a person (models compared by cosine)."
    )
    face_distance_threshold: float = Field(
        0.55,
        gt=0,
        description="Largest Euclidean distance of a face and a person (models compared by L2, as dlib).",
    )
    face_margin: float = Field(
        0.05, ge=0, le=1, description="How much more alike the best person must be than the next one."
    )
    face_min_side_px: int = Field(
        48, ge=1, description="Smallest face in a photo that a person is known by, pixels."
    )
    face_min_sharpness: float = Field(
        8.0, ge=0, description="Least sharpness of such a face: variance of its Laplacian at about 112 px."
    )
    face_min_quality: float = Field(
        0.0, ge=0, description="Least quality of such a face, where the model tells (AdaFace's feature norm)."
    )
    feature_ocr: bool = Field(True, description="Read the text that keyframes show, and search it.")

    upload_link_s: int = Field(
        900,
        ge=1,
        le=604_800,
        description="How long a URL works to which a photo may be PUT, seconds, unless a request says otherwise. An erasure looks once more when the last one has ended.",
    )

    # --- limits on what is accepted
    max_video_bytes: int = Field(20 * GiB, gt=0, description="Largest source file, bytes.")
    max_video_duration_s: float = Field(12 * 3600.0, gt=0, description="Longest video, seconds.")
    max_video_side_px: int = Field(8192, gt=0, description="Largest side of a picture, pixels.")
    max_video_fps: float = Field(240.0, gt=0, description="Highest frame rate, frames per second.")
    max_video_streams: int = Field(16, gt=0, description="Most streams in one file.")
    max_video_scenes: int = Field(50_000, gt=0, description="Most scenes in one video.")
    max_video_pixels: int = Field(
        6_000_000_000_000,
        gt=0,
        description="Most pixels that are decoded of one video, over all its pictures: 26 h of 1920x1080 or 6 h of 3840x2160, at 30 frames a second.",
    )
    max_video_pixels_per_s: int = Field(
        1_100_000_000,
        gt=0,
        description="Most pixels decoded for each second of a video, beyond the first 2 gigapixels: 7680x4320 at 33 frames a second.",
    )
    max_video_pixels_per_byte: int = Field(
        100_000,
        gt=0,
        description="Most pixels decoded for each byte of compressed pictures, beyond the first 2 gigapixels. A still screen of 1920x1080 takes up to 70,000.",
    )
    max_video_keyframes: int = Field(100_000, gt=0, description="Most keyframes stored of one video.")
    max_video_keyframe_bytes: int = Field(
        4 * GiB, gt=0, description="Most bytes that the keyframes of one video take."
    )
    min_audio_rate_hz: int = Field(4_000, gt=0, description="Least sample rate of sound, hertz.")
    max_sound_after_pictures_s: float = Field(
        1800.0, ge=0, description="How long sound may go on after the last picture of a video, seconds."
    )
    media_memory_mb: int = Field(
        768,
        ge=256,
        description="Memory of the process that decodes a file, MB. A video that needs more is refused. Enough for 3840x2160 of every accepted codec; 7680x4320 wants 1024 in H.264 and 2048 in HEVC, VP9 or AV1.",
    )
    media_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="Threads that decode a video. 0: one per core, at most 8. Fewer are used where more would not fit in MEDIA_MEMORY_MB.",
    )
    media_cpu_base_s: float = Field(
        60.0,
        gt=0,
        description="CPU seconds that decoding may take for any file; also the most between two packets of it. Past the limit the video is refused, not tried again.",
    )
    media_cpu_per_s: float = Field(
        10.0,
        ge=0,
        description="CPU seconds that decoding may take, beyond MEDIA_CPU_BASE_S, for each second of the video.",
    )
    max_request_pixels: int = Field(
        100_000_000,
        gt=0,
        description="Most pixels of all the pictures that one request names, each picture counted once.",
    )
    max_jpeg_scans: int = Field(
        50,
        gt=0,
        description="Most scans of a progressive JPEG, each of which costs a pass over all pixels. Encoders write 1 to 30.",
    )
    split_mode: Literal["exact", "fast"] = Field(
        "exact",
        description="`exact` decodes every picture; `fast` skips non-reference pictures.",
    )

    # --- the ledger
    lease_s: float = Field(
        60.0,
        gt=0,
        description="A job not renewed for so long is given to another worker, seconds.",
    )
    heartbeat_s: float = Field(15.0, gt=0, description="How often a running job renews its lease, seconds.")
    reconcile_s: float = Field(
        3.0,
        gt=0,
        description="How often each node looks for work that lost its wake-up message, seconds.",
    )
    max_failures: int = Field(
        3,
        ge=1,
        le=20,
        description="A job is given up after so many errors or deaths of its worker.",
    )
    max_outages: int = Field(
        20,
        ge=1,
        description="A job is given up after so many outages of a service or losses of a node.",
    )
    backoff_s: float = Field(2.0, gt=0, description="First wait before a retry, seconds; doubles each time.")
    backoff_max_s: float = Field(60.0, gt=0, description="Longest wait before a retry, seconds.")
    defer_max_s: float = Field(
        300.0,
        gt=0,
        description="Longest pause of a job that has to wait for something else, seconds; the pause doubles each time.",
    )
    database_wait_s: float = Field(
        20.0,
        ge=0,
        description="How long a task waits for Postgres before it gives its message back, seconds.",
    )
    database_lock_s: float = Field(
        10.0,
        gt=0,
        description="How long a transaction waits for a row that another one holds, seconds (`lock_timeout`).",
    )
    database_statement_s: float = Field(
        60.0,
        gt=0,
        description="Longest statement of a request, seconds (`statement_timeout`).",
    )
    database_job_statement_s: float = Field(900.0, gt=0, description="Longest statement of a job, seconds.")
    database_build_s: float = Field(
        21_600.0,
        gt=0,
        description="Longest build of a vector index, seconds; waiting for older transactions is part of it.",
    )
    database_idle_s: float = Field(
        30.0,
        gt=0,
        description="A session that is silent inside a transaction for so long is ended by Postgres, seconds (`idle_in_transaction_session_timeout`).",
    )
    database_peer_s: float = Field(
        30.0,
        ge=3,
        description="The other end of a connection to Postgres is taken for dead after so much silence of the network, seconds (TCP keepalives and `tcp_user_timeout`, on both ends).",
    )
    tmp_ttl_s: float = Field(
        24 * 3600.0,
        gt=0,
        description="Temporary objects older than this are swept, seconds.",
    )
    soft_shutdown_s: float = Field(
        10.0,
        ge=0,
        description="How long a stopping node lets its running job go on, seconds.",
    )
    visibility_timeout_s: int = Field(
        3600,
        gt=0,
        description="After so long Redis offers an unacknowledged message again (harmless), seconds.",
    )
    result_expires_s: int = Field(
        600, gt=0, description="How long Redis keeps the answer to a request, seconds."
    )

    # --- users beside each other
    usage_half_life_s: float = Field(
        3600.0,
        ge=1,
        description="After so long, device time that a user had counts half when a queue chooses whose job is next, seconds.",
    )
    user_weights: str = Field(
        "",
        description="Shares of users that are not 1, as `alice=2,bob=0.5`: with 2 a user gets twice the device time of another one while both wait. At most 1,000.",
    )
    fleet_weight: float = Field(
        0.25,
        gt=0,
        le=1000,
        description="Share of the fleet's own work (a switch of models) beside a user's of 1.",
    )
    priority_ageing_s: float = Field(
        300.0,
        gt=0,
        description="A waiting job gains one step of priority among its user's jobs after so long, seconds.",
    )
    user_max_open_videos: int = Field(
        0,
        ge=0,
        description="Most videos of one user that wait or are in work; another one is refused until one has ended. 0: no limit.",
    )
    user_max_running_jobs: int = Field(
        0,
        ge=0,
        description="Most jobs of one user that run at once in one queue; the others wait. 0: no limit.",
    )

    # --- search
    search_text_weight: float = Field(0.5, ge=0, description="Weight of the text similarity.")
    search_vision_weight: float = Field(0.35, ge=0, description="Weight of the vision similarity.")
    search_people_weight: float = Field(
        0.3, ge=0, description="Weight of the confidence with which persons asked for were recognised."
    )
    search_keyword_weight: float = Field(
        0.2, ge=0, description="Weight of the words as they were spoken, in a hybrid search."
    )
    search_lexical_weight: float = Field(
        0.2, ge=0, description="Weight of the words as the text model weighs them, in a hybrid search."
    )
    search_screen_weight: float = Field(
        0.2, ge=0, description="Weight of the words on screen, in a hybrid search."
    )
    search_deadline_s: float = Field(
        5.0,
        gt=0,
        le=60,
        description="A model that has not answered a search by then is done without, seconds.",
    )
    search_candidates: int = Field(
        100, ge=10, le=1000, description="How many scenes each retriever of a search puts forward."
    )
    search_link_s: int = Field(
        3600, ge=1, le=604_800, description="How long links to keyframes in an answer work, seconds."
    )
    search_default_results: int = Field(20, ge=1, description="Hits in an answer when none are asked for.")
    search_max_results: int = Field(50, ge=1, le=1000, description="Most hits one answer may have.")
    search_ef: int = Field(
        200,
        ge=10,
        le=1000,
        alias="SEARCH_EF_SEARCH",
        description="`hnsw.ef_search`: candidates looked at by an approximate search.",
    )
    search_exact_rows: int = Field(
        20_000,
        ge=0,
        description="Up to so many vectors of a user are compared one by one, exactly.",
    )

    @field_validator(
        "home", "models_dir", "storage_root", "models_file", "hf_home", "vision_labels", mode="after"
    )
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
        """A Unix socket in the spelling of Celery is taken, too."""
        parts = urlsplit(value)
        if parts.scheme != "redis+socket":
            return value
        query = parts.query.replace("virtual_host=", "db=") or "db=0"
        return f"unix://{parts.netloc}{parts.path}?{query}"

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
        """The URL SQLAlchemy and Alembic want, with the psycopg 3 driver named."""
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
        ValueError: an item is not ``user=weight`` with a weight above 0, a user stands twice, or they are too many.
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
            raise ValueError(f"{user} stands twice")
        weights[user] = weight
    if len(weights) > MAX_WEIGHTS:
        raise ValueError(
            f"it names {len(weights)} users, at most {MAX_WEIGHTS} may have a weight of their own"
        )
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
        raise InvalidRequest(f"{name}={first.get('input')!r} is not acceptable: {first['msg']}") from None
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
