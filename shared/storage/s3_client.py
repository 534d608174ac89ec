"""The connection to an S3 server: addresses, patience and certificates.

minio-py's own client waits up to five minutes, five times; ours gives up in time for a job to be retried.
"""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.helpers import BaseURL, check_bucket_name
from urllib3.util import Retry, Timeout

from ..errors import InvalidRequest
from .objects import StorageConfig

POOL_CONNECTIONS = 10
TRIES = 3
#: ``host:port`` of a server, and whether to use TLS.
Address = tuple[str, bool]


def check_connection(config: StorageConfig) -> tuple[Address, Address]:
    """Refuse a configuration that can't lead to a server; return its address for us and for browsers.

    Raises:
        InvalidRequest: an address or a credential is missing or malformed; names the setting, never its value.
    """
    for name, value in (
        ("STORAGE_ACCESS_KEY", config.access_key),
        ("STORAGE_SECRET_KEY", config.secret_key.get_secret_value()),
    ):
        if not value:
            raise InvalidRequest(f"{name} is not set: STORAGE_BACKEND=minio needs the server's credentials")
    address = _parse_endpoint("STORAGE_ENDPOINT", config.endpoint, config.secure)
    browsers = config.public_endpoint or config.endpoint
    public_address = _parse_endpoint("STORAGE_PUBLIC_ENDPOINT", browsers, config.secure)
    for role, bucket in config.bucket_names().items():
        try:
            check_bucket_name(bucket, strict=True, s3_check=True)
        except ValueError as error:
            raise InvalidRequest(
                f"STORAGE_BUCKET_{role.upper()}={bucket!r} is reserved by S3: choose another name"
            ) from error
    return address, public_address


def open_client(config: StorageConfig, address: Address, *, connects: bool = True) -> Minio:
    """A client for this process, safe to share between its threads. Connects at its first request.

    With ``connects`` false it only signs URLs.
    """
    server, secure = address
    return Minio(
        server,
        access_key=config.access_key,
        secret_key=config.secret_key.get_secret_value(),
        secure=secure,
        region=config.region,  # given, so that neither requests nor signatures ask the server for it first
        http_client=_pool(config, secure) if connects else urllib3.PoolManager(),
    )


def _pool(config: StorageConfig, secure: bool) -> urllib3.PoolManager:
    retries = Retry(
        total=TRIES - 1,
        backoff_factor=0.2,
        status_forcelist=(500, 502, 503, 504),
        raise_on_status=False,  # the last answer names the reason, so let it through
        respect_retry_after_header=False,  # a server could make us wait for hours
        redirect=False,  # a signed request must not be sent elsewhere
    )
    context = None
    if secure:
        context = ssl.create_default_context()  # the system's authorities, or those of SSL_CERT_FILE
        context.load_verify_locations(certifi.where())
    return urllib3.PoolManager(
        timeout=Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s),
        maxsize=POOL_CONNECTIONS,
        retries=retries,
        ssl_context=context,
    )


def _parse_endpoint(setting: str, endpoint: str, secure: bool) -> Address:
    """Parse an address. No error repeats it: it might hold a password."""
    if not endpoint:
        raise InvalidRequest(f"{setting} is not set: name the S3 server as host:port")
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"{'https' if secure else 'http'}://{endpoint}")
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        wrong = wrong or "@" in parts.netloc or bool(parts.path.strip("/") or parts.query or parts.fragment)
        if not wrong:
            BaseURL(f"{parts.scheme}://{parts.netloc}", None)  # minio-py has rules of its own
    except ValueError:
        wrong = True
    if wrong:
        raise InvalidRequest(
            f"{setting} must be host:port or http(s)://host:port, without a path or a password: correct it"
        )
    return parts.netloc, parts.scheme == "https"
