"""The S3 server of the stand-in for MinIO: Swift, with the root's key, users and policies as MinIO keeps them.

Signatures are verified by Swift. What a user may do is decided by the policy attached to it: actions and resources of its
statements, wildcards included; no conditions, no denials. Users survive a restart, objects don't.
"""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()  # before anything else is imported: Swift serves by green threads

import fnmatch  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import eventlet.wsgi  # noqa: E402
import swift_server  # noqa: E402
from swift.common.swob import HTTPForbidden  # noqa: E402

ACCOUNT = "AUTH_fleet"
#: Swift's method -> S3's action on a bucket, and on an object.
ACTIONS = {
    "GET": ("s3:ListBucket", "s3:GetObject"),
    "HEAD": ("s3:ListBucket", "s3:GetObject"),
    "PUT": ("s3:CreateBucket", "s3:PutObject"),
    "POST": ("s3:Unknown", "s3:PutObject"),
    "DELETE": ("s3:DeleteBucket", "s3:DeleteObject"),
}


class Users:
    """Keys, secrets and policies, in a file."""

    def __init__(self, path: Path, root: tuple[str, str]) -> None:
        self.path, self.root = path, root
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.secrets: dict[str, str] = known.get("secrets", {})
        self.attached: dict[str, str] = known.get("attached", {})
        self.policies: dict[str, Any] = known.get("policies", {})

    def secret(self, key: str) -> str | None:
        return self.root[1] if key == self.root[0] else self.secrets.get(key)

    def may(self, key: str, action: str, resource: str) -> bool:
        if key == self.root[0]:
            return True
        policy = self.policies.get(self.attached.get(key, ""), {"Statement": []})
        return any(
            any(fnmatch.fnmatchcase(action, one) for one in statement["Action"])
            and any(fnmatch.fnmatchcase(resource, one) for one in statement["Resource"])
            for statement in policy["Statement"]
            if statement["Effect"] == "Allow"
        )

    def administer(self, verb: str, asked: dict[str, Any]) -> str:
        """Do what `mc admin` asks. Raises PermissionError or KeyError."""
        if verb == "ready":
            return ""
        if tuple(asked["root"]) != self.root:
            raise PermissionError
        if verb == "policy":
            self.policies[asked["name"]] = asked["policy"]
        elif verb == "user":
            if asked["key"] == self.root[0]:
                raise PermissionError
            self.secrets[asked["key"]] = asked["secret"]
        elif verb == "attach":
            # As MinIO: to attach again is an error.
            if self.attached.get(asked["key"]) == asked["name"] or asked["name"] not in self.policies:
                raise PermissionError
            self.attached[asked["key"]] = asked["name"]
        elif verb == "info":
            return f"AccessKey: {asked['key']}\nStatus: enabled\nPolicyName: {self.attached.get(asked['key'], '')}"
        else:
            raise KeyError(verb)
        state = {"secrets": self.secrets, "attached": self.attached, "policies": self.policies}
        self.path.write_text(json.dumps(state))
        return ""


USERS: Users


def make_keys(_global_conf: dict[str, str], **_conf: str) -> Callable[[Any], Any]:
    """The filter that takes the place of Swift's own authentication."""

    def keys(app: Any) -> Any:
        def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            details = environ.get("s3api.auth_details")
            if details:
                key = details["access_key"]
                secret = USERS.secret(key)
                if secret is not None and details["check_signature"](secret):
                    environ["PATH_INFO"] = environ["PATH_INFO"].replace(key, ACCOUNT, 1)
                    environ["REMOTE_USER"] = f"{ACCOUNT},{key}"
                    environ["swift_owner"] = True
                    environ["swift.authorize"] = lambda request: refuse(key, request)
                else:
                    environ["swift.authorize"] = lambda request: HTTPForbidden(request=request)
            return app(environ, start_response)

        return call

    return keys


def refuse(key: str, request: Any) -> Any:
    """None if the request is allowed, else the answer that refuses it."""
    _, _, bucket, name = request.split_path(1, 4, True)
    if bucket is None:
        allowed = USERS.may(key, "s3:ListAllMyBuckets", "arn:aws:s3:::*")
    else:
        # Where Swift keeps the parts of an upload.
        parts = bucket.endswith("+segments")
        resource = f"arn:aws:s3:::{bucket.removesuffix('+segments')}" + (f"/{name}" if name or parts else "")
        of_bucket, of_object = ACTIONS.get(request.method, ("s3:Unknown", "s3:Unknown"))
        action = "s3:PutObject" if parts else of_bucket if name is None else of_object
        allowed = USERS.may(key, action, resource)
    return None if allowed else HTTPForbidden(request=request)


def with_administration(app: Any) -> Any:
    """The S3 server, and what the stand-in `mc` asks under /stand-in/."""

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith("/stand-in/"):
            return app(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            answer, status = USERS.administer(path.rpartition("/")[2], json.loads(body or b"{}")), "200 OK"
        except (PermissionError, KeyError) as error:
            answer, status = repr(error), "403 Forbidden"
        start_response(status, [("Content-Type", "text/plain")])
        return [answer.encode()]

    return call


def main(folder: Path) -> None:
    global USERS
    root = (os.environ["MINIO_ROOT_USER"], os.environ["MINIO_ROOT_PASSWORD"])
    USERS = Users(folder / "users.json", root)
    work = folder / "swift"
    work.mkdir(exist_ok=True)
    config = swift_server.PROXY.format(
        folder=work, region="us-east-1", s3api="auth_pipeline_check = false",
        users="paste.filter_factory = minio_server:make_keys",
    )  # fmt: skip
    app = with_administration(swift_server.make_proxy(work, config))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    eventlet.wsgi.server(eventlet.listen(("0.0.0.0", 9000)), app, log_output=False)


if __name__ == "__main__":
    # By its name too, as the configuration of the proxy imports it.
    import minio_server

    minio_server.main(Path(sys.argv[1]))
