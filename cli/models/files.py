"""``scenefleet models list|info|pull|verify``: which models there are, and whether their files are here and right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from cli import screen
from shared import permissions
from shared.errors import InvalidRequest, ModelUnavailable
from shared.exit_status import ExitStatus
from shared.settings import Settings, get_settings
from worker.models.catalog import Catalog, load_catalog
from worker.models.spec import ModelSpec
from worker.models.weights import lock
from worker.models.weights.pull import Pulled, Unstated, Watcher, pull
from worker.models.weights.verify import digest, place

#: Widest a licence is shown in the list; `info` has all of it.
LICENCE_COLUMNS = 30
#: Around the table in docs/models.md.
TABLE_BEGIN = "<!-- models: begin (python -m cli.models.files writes this table) -->"
TABLE_END = "<!-- models: end -->"
#: What a model is called whose files are all here, by the scheme of its source.
HERE = {
    "package": "in package",
    "path": "in place",
    "hub": "pulled",
    "url": "pulled",
    "wheel": "pulled",
    "user": "supplied",
}


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a model, as it is on this machine."""

    model: str
    file: str
    path: str
    #: here, ok, missing, wrong or no checksum
    state: str
    bytes: int | None
    #: The checksum it must have, and where it is stated: `models.yaml` or `models.lock`; None: nowhere.
    expected: str | None
    expected_by: str | None
    #: The checksum it has; None where it was not computed.
    found: str | None


def show_list(*, as_json: bool) -> None:
    """Every model of the catalogue."""
    settings, catalog = _read()
    active = {spec.name for spec in catalog.active(settings).values()}
    rows = [_summary(spec, settings.models_dir, active) for spec in catalog.specs]
    if as_json:
        screen.write_json({"models": rows})
        return
    table = screen.make_table("name", "kind", "provider", "profiles", "licence", ">MB", ">dim", "here")
    for row, spec in zip(rows, catalog.specs, strict=True):
        name = f"[bold]{spec.name}[/bold]" if row["active"] else spec.name
        profiles, licence = ", ".join(spec.profiles) or "-", escape(_cut(spec.licence))
        size, dim, here = f"{spec.memory_mb:,}", str(spec.dim or "-"), screen.styled(row["here"])
        table.add_row(name, spec.kind, spec.provider, profiles, licence, size, dim, here)
    console = screen.make_console()
    console.print(table)
    where = f"files are in {settings.models_dir}"
    console.print(f"[dim]bold: active in profile {settings.profile}; {where}[/dim]")


def show_info(name: str, *, as_json: bool) -> None:
    """Everything about one model."""
    settings, catalog = _read()
    spec = catalog.get(name)
    entry = lock.read(settings.models_dir).get(name)
    active = {spec.name for spec in catalog.active(settings).values()}
    files = [_look(spec, file, settings.models_dir, entry, compute=False) for file in spec.all_files]
    facts = {
        **spec.model_dump(mode="json", exclude={"files", "sha256"}),
        **_summary(spec, settings.models_dir, active),
        "pulled_revision": entry.revision if entry else None,
        "folder": str(settings.models_dir / name) if spec.is_pulled or spec.source == "user:" else None,
    }
    if as_json:
        screen.write_json({**facts, "files": [asdict(file) for file in files]})
        return
    console = screen.make_console()
    table = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        if value not in (None, "", {}, []):
            table.add_row(f"[dim]{label.replace('_', ' ')}[/dim]", escape(_text(value)))
    console.print(table)
    for file in files:
        size = decimal(file.bytes) if file.bytes is not None else "missing"
        stated = f"sha256 {file.expected} ({file.expected_by})"
        by = stated if file.expected else "no checksum before the first pull"
        console.print(f"\n[bold]{escape(file.file)}[/bold]  {size}", soft_wrap=True)
        console.print(f"  {escape(file.path)}\n  [dim]{by}[/dim]", soft_wrap=True)


def run_verify(names: Sequence[str], profile: str | None, *, as_json: bool) -> int:
    """Compute the checksum of every file; exit 1 when one is wrong, missing or has no known checksum."""
    settings, catalog = _read()
    entries = lock.read(settings.models_dir)
    files = [
        _look(spec, file, settings.models_dir, entries.get(spec.name), compute=True)
        for spec in _chosen(catalog, settings, names, profile)
        for file in spec.all_files
    ]
    good = all(file.state == "ok" for file in files)
    document = {"good": good, "files": [asdict(file) for file in files]}
    screen.answer(document, lambda: _file_table(files), as_json=as_json)
    for file in files:
        if file.state != "ok" and not as_json:
            screen.make_console().print(_complaint(file), soft_wrap=True)
    return 0 if good else 1


def _file_table(files: Sequence[File]) -> Table:
    table = screen.make_table("model", "~file", "state", ">size")
    for file in files:
        size = decimal(file.bytes) if file.bytes is not None else "-"
        table.add_row(file.model, escape(file.file), screen.styled(file.state), size)
    return table


def run_pull(names: Sequence[str], profile: str | None, *, update: bool, trust: bool, as_json: bool) -> int:
    """Fetch the files of models; exit 1 when one could not be had, after trying the others."""
    permissions.keep_private()
    settings, catalog = _read()
    specs = _chosen(catalog, settings, names, profile)
    console = screen.make_console(stderr=True)
    results: list[dict[str, Any]] = []
    try:
        for spec in specs:
            results.append(_pull_one(spec, settings, console, update=update, trust=trust))
    except KeyboardInterrupt:
        sys.stderr.write("scenefleet: stopped; the next pull goes on from here\n")
        return ExitStatus.INTERRUPTED
    if as_json:
        screen.write_json({"models": results})
    return 1 if any(result["error"] for result in results) else 0


def _pull_one(
    spec: ModelSpec, settings: Settings, console: Console, *, update: bool, trust: bool
) -> dict[str, Any]:
    pulled: list[Pulled] = []
    error = ""
    bars = _Bars(spec.name, console)
    with bars.display:
        try:
            pulled = pull(
                spec,
                models_dir=settings.models_dir,
                endpoint=settings.hf_endpoint,
                update=update,
                trust=lambda files: _ask_for_trust(spec, files, bars, sure=trust),
                watcher=bars,
            )
        except ModelUnavailable as refusal:
            error = str(refusal)
    if error:
        sys.stderr.write(f"scenefleet: {error}\n")
    else:
        bars.say(f"{spec.name}: {_outcome(spec, pulled, settings.models_dir)}")
    entry = lock.read(settings.models_dir).get(spec.name)
    return {
        "name": spec.name,
        "revision": (entry.revision if entry else None) or spec.revision,
        "files": [{**asdict(file), "path": str(file.path)} for file in pulled],
        "error": error,
    }


def _ask_for_trust(spec: ModelSpec, files: Sequence[Unstated], bars: _Bars, *, sure: bool) -> bool:
    """Show the files without a stated checksum; returns whether to trust them."""
    bars.display.stop()
    bars.say(f"{spec.name}: no sha256 is stated for these files; later pulls must match it:")
    for file in files:
        origin = f"commit {file.commit or 'none'}  from {file.url}"
        bars.say(escape(f"  {file.file}  {file.bytes} bytes  sha256 {file.sha256}  {origin}"))
    if sure or not sys.stdin.isatty():
        return sure
    return typer.confirm("Trust them?", err=True)


class _Bars(Watcher):
    """A bar for each file on a terminal; nothing elsewhere, where a line per model is enough."""

    def __init__(self, model: str, console: Console) -> None:
        self._model = model
        self.say = partial(console.print, soft_wrap=True)
        self._tasks: dict[str, TaskID] = {}
        self.display = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
            DownloadColumn(table_column=Column(no_wrap=True)),
            TransferSpeedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            # What was fetched stays as the model's own line.
            transient=True,
        )

    def checking(self, file: str) -> None:
        self._task(file, f"{file}: checking")

    def progress(self, file: str, done_bytes: int, total_bytes: int | None) -> None:
        task = self._task(file, file)
        self.display.update(task, description=escape(file), completed=done_bytes, total=total_bytes)

    def waiting(self) -> None:
        self.say(f"{self._model}: another pull of it is running; waiting for it")

    def _task(self, file: str, description: str) -> TaskID:
        if file not in self._tasks:
            self._tasks[file] = self.display.add_task(escape(description), total=None)
        return self._tasks[file]


def _read() -> tuple[Settings, Catalog]:
    """The settings, and the catalogue as it stands in the file: without what the lock adds to it."""
    settings = get_settings()
    return settings, load_catalog(settings.models_file)


def _chosen(
    catalog: Catalog, settings: Settings, names: Sequence[str], profile: str | None
) -> list[ModelSpec]:
    """The models a command is about: those named, those of a profile, or the active ones.

    Raises: InvalidRequest, ModelUnavailable.
    """
    if names and profile:
        raise InvalidRequest(f"name models or give --profile {profile}, not both")
    if names:
        return [catalog.get(name) for name in dict.fromkeys(names)]
    active = catalog.for_profile(profile) if profile else catalog.active(settings)
    return list(active.values())


def _summary(spec: ModelSpec, models_dir: Path, active: set[str]) -> dict[str, Any]:
    fields = {"name", "family", "kind", "provider", "profiles", "licence", "memory_mb", "dim"}
    # By the files' names, not their checksums.
    is_here = all(_find(spec, file, models_dir)[1] for file in spec.all_files)
    return {
        **spec.model_dump(mode="json", include=fields),
        "active": spec.name in active,
        "here": HERE[spec.source.partition(":")[0]] if is_here else "missing",
    }


def _find(spec: ModelSpec, file: str, models_dir: Path) -> tuple[str, Path | None]:
    """Where a file belongs, in words, and its path if it is there."""
    try:
        path = place(spec, file, models_dir=models_dir)
    except ModelUnavailable:
        return "its Python package is not installed", None
    return str(path), path if path.is_file() else None


def _look(spec: ModelSpec, file: str, models_dir: Path, entry: lock.Entry | None, *, compute: bool) -> File:
    """What one file is; with `compute`, its checksum too."""
    recorded = entry.files.get(file) if entry else None
    expected = spec.sha256.get(file) or (recorded.sha256 if recorded else None)
    shown, path = _find(spec, file, models_dir)
    found = digest(spec, path) if compute and path else None
    if path is None:
        state = "missing"
    elif not compute:
        state = "here"
    elif expected is None:
        state = "no checksum"
    else:
        state = "ok" if found == expected else "wrong"
    return File(
        model=spec.name,
        file=file,
        path=shown,
        state=state,
        bytes=path.stat().st_size if path else None,
        expected=expected,
        expected_by="models.yaml" if file in spec.sha256 else lock.FILE if recorded else None,
        found=found,
    )


def _complaint(file: File) -> str:
    what = f"{escape(file.path)} ({file.model})"
    if file.state == "missing":
        return f"[yellow]missing[/yellow] {what}"
    if file.state == "no checksum":
        return f"[yellow]no checksum[/yellow] {what}: pull the model to record it; it has {file.found}"
    return f"[red]wrong[/red]   {what}: {file.expected_by} expects sha256 {file.expected}, found {file.found}"


def _outcome(spec: ModelSpec, pulled: Sequence[Pulled], models_dir: Path) -> str:
    if not pulled:
        return "nothing to pull, its files come inside Python packages or are where models.yaml says"
    fetched = [file for file in pulled if file.state == "fetched"]
    if not fetched:
        return f"here, {len(pulled)} of {len(pulled)} files right"
    size = decimal(sum(file.bytes for file in fetched))
    return f"fetched {len(fetched)} of {len(pulled)} files, {size}, into {models_dir / spec.name}"


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(str(item) for item in value)
        case dict():
            return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= LICENCE_COLUMNS else text[: LICENCE_COLUMNS - 1].rstrip(" (,;") + "…"


def markdown_table(catalog: Catalog) -> str:
    """The table of docs/models.md."""
    rows = ["| model | kind | vectors | memory | licence | profile |", "|---|---|---|---|---|---|"]
    for spec in catalog.specs:
        vectors = f"{spec.dim}, {spec.metric}" if spec.dim else "-"
        use = f"{spec.memory_mb:,} MB | {spec.licence} | {', '.join(spec.profiles) or '-'}"
        rows.append(f"| `{spec.name}` | {spec.kind} | {vectors} | {use} |")
    return "\n".join(rows)


def main() -> None:
    """Write the table into ``docs/models.md``."""
    path = Path("docs/models.md")
    head, rest = path.read_text(encoding="utf-8").split(TABLE_BEGIN)
    tail = rest.split(TABLE_END)[1]
    table = f"{TABLE_BEGIN}\n\n{markdown_table(load_catalog())}\n\n{TABLE_END}"
    path.write_text(f"{head}{table}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
