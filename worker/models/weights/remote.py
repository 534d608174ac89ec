"""Metadata of a file on a server, before it is fetched: length, commit, checksum.

Asks through huggingface_hub, which knows the hub's redirects, tokens and error codes; it is imported when first needed.
Every refusal is one clause for the end of a sentence: who, what was asked, what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ModelUnavailable

#: Seconds to wait for: a connection, the next bytes, room to send, a free connection.
TIMEOUTS_S = (10.0, 30.0, 30.0, 30.0)
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file on a server, as it is now."""

    url: str
    #: To send with the request; may hold a token.
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    #: None: the server does not say.
    size_bytes: int | None
    #: Another one when the content is another; empty when the server has none: what was fetched of it is then of no use
    #: to a later attempt.
    tag: str
    #: For `If-Range`, where the server that sends the tag also sends the bytes.
    if_range: str = ""
    #: As the server states it.
    sha256: str | None = None
    #: Of the hub's repository.
    commit: str | None = None


def find_on_hub(repository: str, file: str, revision: str, endpoint: str) -> Remote:
    """A file of a repository (`owner/name`) on the model hub.

    Args:
        revision: branch, tag or commit.
        endpoint: another hub than Hugging Face's; empty for that.

    Raises: ModelUnavailable when the hub does not answer, has no such file or refuses it.
    """
    hub = import_hub()
    errors = hub.errors
    host = endpoint or hub.constants.ENDPOINT
    # None: the user's token, if there is one. Without TLS it could be intercepted.
    token = None if host.startswith("https://") else False
    unsent = "" if token is None else "; over plain http no token is sent, so use the hub's https address"
    try:
        url = hub.hf_hub_url(repository, file, revision=revision, endpoint=endpoint or None)
        found = hub.get_hf_file_metadata(url, timeout=TIMEOUTS_S[1], endpoint=endpoint or None, token=token)
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        refusals = {
            errors.GatedRepoError: f"{repository} asks for permission (HTTP {status}): accept its terms on "
            f"{host}/{repository} and set HF_TOKEN to a token of your account{unsent}",
            errors.RepositoryNotFoundError: f"{host} has no repository {repository}, or keeps it private (HTTP {status}): "
            f"correct source in models.yaml, or set HF_TOKEN to a token that may read it{unsent}",
            errors.RevisionNotFoundError: f"{repository} has no revision {revision} (HTTP 404): correct revision in "
            "models.yaml, or give up the commit recorded in models.lock with --update",
            errors.EntryNotFoundError: f"{repository} has no file {file} at revision {revision} (HTTP 404): correct files "
            "in models.yaml",
            errors.HfHubHTTPError: _refusal(f"{host}/{repository}", status),
        }
        said = next(said for kind, said in refusals.items() if isinstance(error, kind))
        raise ModelUnavailable(said) from error
    except errors.HTTPError as error:
        raise ModelUnavailable(f"{host} can't be reached ({describe(error)}); try again later") from error
    except (errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise ModelUnavailable(" ".join(str(error).split())) from error
    if not found.commit_hash or not found.etag:
        raise ModelUnavailable(f"{host} does not answer like a model hub: it names no commit for {file}")
    return Remote(
        url=url,
        headers=hub.utils.build_hf_headers(token=token),
        size_bytes=found.size,
        tag=found.etag,
        sha256=found.etag if SHA256.fullmatch(found.etag) else None,
        commit=found.commit_hash,
    )


def find_by_url(url: str) -> Remote:
    """A file on any web server. Raises: ModelUnavailable."""
    hub = import_hub()
    try:
        response = hub.get_session().head(
            url, headers={"Accept-Encoding": "identity"}, follow_redirects=True, timeout=TIMEOUTS_S
        )
    except hub.errors.HTTPError as error:
        raise ModelUnavailable(f"{url} can't be reached ({describe(error)}); try again later") from error
    if response.status_code in (405, 501):
        # The server does not answer HEAD: what there is to know comes with the bytes.
        return Remote(url=url, size_bytes=None, tag="")
    if response.status_code >= 400:
        raise ModelUnavailable(_refusal(url, response.status_code))
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise ModelUnavailable(f"{url} is a web page, not a file of weights: correct source in models.yaml")
    length, etag = response.headers.get("Content-Length", ""), response.headers.get("ETag", "")
    return Remote(
        url=url,
        size_bytes=int(length) if length.isdigit() else None,
        tag=etag or response.headers.get("Last-Modified", ""),
        if_range="" if etag.startswith("W/") else etag,
    )


def import_hub() -> Any:
    """huggingface_hub, with the parts that are used here. Raises: ModelUnavailable when it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ModelUnavailable(
            f"fetching does not work here ({error}): install scenefleet's extra 'full'"
        ) from error
    return huggingface_hub


def describe(error: Exception) -> str:
    """A network failure in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _refusal(what: str, status: int) -> str:
    if status == 404:
        return f"{what} does not exist (HTTP 404): correct source or files in models.yaml"
    if status in (401, 403):
        return f"{what} may not be read (HTTP {status}): set HF_TOKEN to a token that may, or correct models.yaml"
    return f"{what} was not given (HTTP {status}); try again later"
