"""Downloads the weights of a model into MODELS_DIR, and records them in `models.lock`.

A checksum in the catalogue always takes precedence; otherwise the first pull shows the files, and after confirmation later
pulls, also on machines with the same lock, must get the same. Files get their names when all files of the model are present
and correct: a killed pull leaves partial files for the next one, never half a model. Only files in the catalogue are downloaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.errors import ModelUnavailable
from shared.permissions import make_private_folder
from shared.settings import process_environment
from worker.models.spec import ModelSpec
from worker.models.weights import lock
from worker.models.weights.download import CHUNK_BYTES, Download
from worker.models.weights.remote import Remote, find_by_url, find_on_hub
from worker.models.weights.verify import place

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


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The expected content of a file."""

    sha256: str
    #: Where it is stated: `models.yaml` or `models.lock`.
    source: str


@dataclass
class _State:
    """What a pull has found out so far."""

    #: Commit of the model's own repository; None: not asked yet, or it has none.
    commit: str | None
    files: dict[str, lock.LockedFile] = field(default_factory=dict)
    states: dict[str, Literal["fetched", "here", "supplied"]] = field(default_factory=dict)
    #: Partial file -> its name to be.
    moves: list[tuple[Path, Path]] = field(default_factory=list)
    #: Files that only the user can put there.
    absent: list[Path] = field(default_factory=list)
    #: Fetched, or found equal to the server's, without a stated checksum.
    unstated: list[Unstated] = field(default_factory=list)


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
        with _alone(models_dir, spec.name, pulling.watcher.waiting):
            return pulling.run()
    except ModelUnavailable as error:
        raise ModelUnavailable(f"Model {spec.name} can't be pulled: {str(error).rstrip('.')}") from error
    except OSError as error:
        raise ModelUnavailable(
            f"Model {spec.name} can't be pulled: {error.filename or models_dir} can't be used ({error.strerror})"
        ) from error


@dataclass(frozen=True)
class _Pull:
    spec: ModelSpec
    models_dir: Path
    endpoint: str
    update: bool
    trust: Trust
    watcher: Watcher

    @property
    def folder(self) -> Path:
        return self.models_dir / self.spec.name

    @property
    def files(self) -> list[str]:
        """Those below MODELS_DIR."""
        return [file for file in self.spec.all_files if _is_in_models_dir(self.spec, file)]

    def run(self) -> list[Pulled]:
        entry = lock.read(self.models_dir).get(self.spec.name) or lock.Entry(files={})
        found = _State(commit=None if self.update else entry.revision)
        # What the user must supply first: asking for it needs no network.
        for file in sorted(self.files, key=lambda file: not self._is_supplied(file)):
            try:
                self._obtain(file, entry, found)
            except ModelUnavailable as error:
                if found.absent:
                    raise ModelUnavailable(f"{error}; also, {self._ask_for(found.absent)}") from error
                raise
        if found.unstated and not self.trust(found.unstated):
            raise ModelUnavailable(self._ask_for_trust(found.unstated))
        self._record(found, entry)
        for part, path in found.moves:
            make_private_folder(path.parent)
            part.replace(path)
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
        if found.absent:
            raise ModelUnavailable(self._ask_for(found.absent))
        return [self._describe(file, found) for file in self.files]

    def _describe(self, file: str, found: _State) -> Pulled:
        known, state = found.files[file], found.states[file]
        return Pulled(file=file, path=self._path(file), state=state, bytes=known.bytes, sha256=known.sha256)

    def _obtain(self, file: str, entry: lock.Entry, found: _State) -> None:
        """Check one file, and fetch it if it is missing or wrong."""
        path, known = self._path(file), self._known(file, entry)
        here = None
        if path.is_file():
            self.watcher.checking(file)
            with path.open("rb") as stream:
                here = hashlib.file_digest(stream, "sha256").hexdigest()
        if self._is_supplied(file):
            if here is None:
                found.absent.append(path)
            else:
                self._compare(str(path), here, known)
                self._keep(file, here, path, found, None, state="supplied")
            return
        recorded = entry.files.get(file)
        if here is not None and known is not None and here == known.sha256 and not self._is_moving(known):
            revision = recorded.revision if recorded else None
            self._keep(file, here, path, found, revision)
            return
        self._refuse_offline(file)
        remote = self._find(file, entry, found)
        revision = remote.commit if file.startswith("hub:") else None
        if here is not None and _is_same(remote, path, here) and (known is None or self._is_moving(known)):
            self._keep(file, here, path, found, revision)
            self._note_unstated(file, remote, known, found)
            return
        if remote.sha256 is not None:
            self._compare(file, remote.sha256, known)
        self._fetch(file, remote, known, revision, found)

    def _fetch(
        self, file: str, remote: Remote, known: _Known | None, revision: str | None, found: _State
    ) -> None:
        part = self.folder / PARTIAL / f"{self._path(file).relative_to(self.folder)}.part"
        download = Download(remote, part, lambda done, total: self.watcher.progress(file, done, total))
        sha256, size = download.run()
        try:
            if remote.sha256 is not None and sha256 != remote.sha256:
                raise ModelUnavailable(
                    f"{remote.url} did not bring what the server announced: expected sha256 {remote.sha256}, found "
                    f"{sha256}; try again"
                )
            self._compare(file, sha256, known)
        except ModelUnavailable:
            download.discard()
            raise
        found.files[file] = lock.LockedFile(sha256=sha256, bytes=size, revision=revision)
        found.states[file] = "fetched"
        found.moves.append((part, self._path(file)))
        self._note_unstated(file, remote, known, found)

    def _note_unstated(self, file: str, remote: Remote, known: _Known | None, found: _State) -> None:
        if known is None:
            came = found.files[file]
            found.unstated.append(
                Unstated(
                    file=file, url=remote.url, commit=remote.commit, bytes=came.bytes, sha256=came.sha256
                )
            )

    def _keep(
        self,
        file: str,
        sha256: str,
        path: Path,
        found: _State,
        revision: str | None,
        state: Literal["here", "supplied"] = "here",
    ) -> None:
        found.files[file] = lock.LockedFile(sha256=sha256, bytes=path.stat().st_size, revision=revision)
        found.states[file] = state

    def _compare(self, what: str, sha256: str, known: _Known | None) -> None:
        """Compare a checksum with the expected one. Raises: ModelUnavailable."""
        if known is None or sha256 == known.sha256 or self._is_moving(known):
            return
        if known.source == lock.FILE:
            remedy = f"`scenefleet models pull {self.spec.name} --update` accepts the new one"
        else:
            remedy = "its publisher changed it, or models.yaml is wrong: correct the checksum there if you trust the new one"
        raise ModelUnavailable(
            f"{what} is not the file {known.source} means: expected sha256 {known.sha256}, found {sha256}; {remedy}"
        )

    def _find(self, file: str, entry: lock.Entry, found: _State) -> Remote:
        """Ask the server for a file. All files of the model's own repository come from one commit."""
        if file.startswith("hub:"):
            owner, name, path = file.removeprefix("hub:").split("/", 2)
            name, _, stated = name.partition("@")
            recorded = entry.files.get(file)
            pinned = recorded.revision if recorded and not self.update else None
            return find_on_hub(f"{owner}/{name}", path, stated or pinned or OWN_PLACE_REVISION, self.endpoint)
        scheme, _, rest = self.spec.source.partition(":")
        if scheme == "url":
            return find_by_url(f"{rest.rstrip('/')}/{file}")
        remote = find_on_hub(rest, file, found.commit or self.spec.revision, self.endpoint)
        found.commit = remote.commit
        return remote

    def _record(self, found: _State, before: lock.Entry) -> None:
        """Write the lock before the files get their names, so that every named file is recorded."""
        entry = lock.Entry(revision=found.commit or before.revision, files=found.files)
        if entry == before:
            return
        with lock.changing(self.models_dir) as entries:
            entries[self.spec.name] = entry

    def _known(self, file: str, entry: lock.Entry) -> _Known | None:
        if file in self.spec.sha256:
            return _Known(sha256=self.spec.sha256[file], source="models.yaml")
        if file in entry.files:
            return _Known(sha256=entry.files[file].sha256, source=lock.FILE)
        return None

    def _is_moving(self, known: _Known) -> bool:
        """Whether another checksum than the known one may be accepted."""
        return self.update and known.source == lock.FILE

    def _is_supplied(self, file: str) -> bool:
        return self.spec.source.startswith("user:") and not file.startswith("hub:")

    def _path(self, file: str) -> Path:
        return place(self.spec, file, models_dir=self.models_dir)

    def _refuse_offline(self, file: str) -> None:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            value = process_environment(name) or ""
            if value.upper() in ("1", "ON", "YES", "TRUE"):
                raise ModelUnavailable(
                    f"{file} has to be fetched, but {name}={value} forbids it: unset it to pull"
                )

    def _ask_for_trust(self, unstated: list[Unstated]) -> str:
        first, *others = unstated
        more = f" and {len(others)} more files" if others else ""
        return (
            f"no sha256 is stated for {first.file} (found {first.sha256}){more}: compare with what its publisher says, "
            f"and accept it by `scenefleet models pull {self.spec.name} --trust`"
        )

    def _ask_for(self, absent: list[Path]) -> str:
        names = " and ".join(path.name for path in absent)
        return (
            f"{names} is not downloaded, you supply it: put it into {self.folder} and pull again; "
            f"licence: {self.spec.licence}"
        )


def _is_in_models_dir(spec: ModelSpec, file: str) -> bool:
    if file.startswith(("package:", "hub:")):
        return file.startswith("hub:") and not spec.source.startswith(("package:", "path:"))
    return spec.source.startswith(("hub:", "url:", "user:"))


def _is_same(remote: Remote, path: Path, sha256: str) -> bool:
    """Whether the file that is here is the server's: the hub's tag of a small file is git's name for its content."""
    if remote.sha256 is not None:
        return remote.sha256 == sha256
    if remote.commit is None or path.stat().st_size != remote.size_bytes:
        return False
    content = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            content.update(chunk)
    return content.hexdigest() == remote.tag


@contextmanager
def _alone(models_dir: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes from pulling the same model; the lock of a killed process is released."""
    make_private_folder(models_dir)
    with (models_dir / f".{name}.pull").open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield
