"""MkDocs hooks (mkdocs.yml): pages made from the code, and pages and links that lead out of docs/.

The reference pages are made at every build, so they can't be out of date. A link to a file outside docs/ leads to the
repository; a link to a file that does not exist fails the build (`mkdocs build --strict`).
"""

from __future__ import annotations

import ast
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cli.main import app as commands
from shared import calls, contracts, routing
from worker.app import app as celery

ROOT = Path(__file__).parents[1]
#: Documents outside docs/, and the page of each.
ELSEWHERE = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "samples/README.md": "samples.md",
    "bench/README.md": "bench.md",
    "deploy/kubernetes/README.md": "kubernetes.md",
}
#: A file of the code, named in text.
FILE = re.compile(r"`((?:shared|db|tasks|worker|local|cli|tests|bench)/[\w/]+\.\w+)`")
#: `](target)` and `[name]: target`.
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s]+)(?=[)\s]|$)", re.MULTILINE)
log = get_plugin_logger("docs")


def on_config(config: MkDocsConfig) -> None:
    """List the decisions in the navigation, by number."""
    decisions = sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/decisions/*.md")
    )
    (discussion,) = (group["Discussion"] for group in config.nav or [] if "Discussion" in group)
    next(entry for entry in discussion if "Decisions" in entry)["Decisions"] = decisions


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside docs/ and the reference pages."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    pages = {"commands.md": commands_page(), "tasks.md": tasks_page(), "contracts.md": contracts_page()}
    pages["contracts.schema.json"] = json.dumps(schemas(), indent=2)
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages, or into links to the repository."""
    here = page.file.src_uri
    source = next((name for name, uri in ELSEWHERE.items() if uri == here), f"docs/{here}")

    def rewrite(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        uri = ELSEWHERE.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(uri) is not None:
            found = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        elif (ROOT / target).exists():
            found = f"{config.repo_url}/blob/main/{target}"
        else:
            return match[0]
        return match[1] + found + (f"#{anchor}" if anchor else "")

    for name in FILE.findall(markdown):
        if not (ROOT / name).exists():
            log.warning("%s names %s, which does not exist", source, name)
    return LINK.sub(rewrite, markdown)


def commands_page() -> str:
    """Arguments, options and help of every command."""

    def walk(command: click.Command, parent: click.Context | None, name: str) -> Iterator[str]:
        context = click.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"])
        if parent is not None:
            usage = " ".join(command.collect_usage_pieces(context))
            usage = re.sub(r"\{(.+?)\}(\.\.\.)?", r"\1", usage).replace("[[", "[").replace("]]", "]")
            yield f"## {context.command_path}\n\n    {context.command_path} {usage}\n"
            # Rich's marks; indented lines are examples and become code.
            yield (
                re.sub(r"\[/?bold\]", "", inspect.cleandoc(command.help or "")).replace("\n  ", "\n    ")
                + "\n"
            )
            rows = [param.get_help_record(context) for param in command.params]
            if rows := [row for row in rows if row is not None and "--help" not in row[0]]:
                yield "| option | |\n|---|---|"
                yield from (f"| `{cell(option)}` | {cell(text)} |" for option, text in rows)
                yield ""
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, context, name)

    return "# Commands\n\n" + "\n".join(walk(typer.main.get_command(commands), None, "scenefleet"))


def tasks_page() -> str:
    """Every task a caller may send: queue, payload and answer."""
    celery.loader.import_default_modules()
    text = "# Tasks\n\nSend a task by name, with its fields as keyword arguments. [Contracts](contracts.md) has every type.\n"
    for name, (method, payload, answer) in requests().items():
        doc = inspect.cleandoc(celery.tasks[name].run.__doc__ or "")
        text += (
            f"\n## {name}\n\n{doc}\n\nQueue `{routing.TASK_QUEUE[name]}`; answer [{answer}](contracts.md#{answer.lower()});"
            f" in Python `shared.client.Client.{method}`.\n\n{fields(payload)}\n"
        )
    return text


def requests() -> dict[str, tuple[str, str, str]]:
    """Task name -> (method of the client, contract of the payload, contract of the answer)."""
    found = {}
    for method in ast.walk(ast.parse(inspect.getsource(calls.Calls))):
        if isinstance(method, ast.FunctionDef):
            for call in ast.walk(method):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "Call":
                    task, payload, _, answer = (
                        ast.unparse(argument).rpartition(".")[2] for argument in call.args
                    )
                    found[getattr(routing, task)] = (method.name, payload, answer)
    if missing := routing.TASK_QUEUE.keys() - found.keys():
        raise ValueError(f"{sorted(missing)} have no method in shared/calls.py: add one")
    return found


def contracts_page() -> str:
    """Fields of every contract."""
    text = "# Contracts\n\nPayloads and answers of tasks, as JSON. [JSON schema of all](contracts.schema.json).\n"
    for name, schema in sorted(schemas()["$defs"].items()):
        if not schema.get("properties", {}).keys() - {"version"}:
            continue
        text += f"\n## {name}\n\n{schema.get('description', '')}\n\n{fields(name)}\n"
    return text


@cache
def schemas() -> dict[str, Any]:
    models = [
        thing for thing in vars(contracts).values() if inspect.isclass(thing) and issubclass(thing, BaseModel)
    ]
    schema: dict[str, Any] = models_json_schema([(model, "validation") for model in models])[1]
    for name, found in schema["$defs"].items():
        for field, comment in comments(getattr(contracts, name, None)).items():
            found["properties"].get(field, {})["description"] = comment
    return schema


def comments(model: type | None) -> dict[str, str]:
    """Field -> the `#:` comment above it."""
    if model is None or not issubclass(model, BaseModel):
        return {}
    found = re.findall(r"((?:^ +#: .*\n)+)^ +(\w+):", inspect.getsource(model), re.MULTILINE)
    return {field: " ".join(re.findall(r"#: (.*)", comment)) for comment, field in found}


def fields(name: str) -> str:
    """A table of a contract's fields."""
    schema = schemas()["$defs"][name]
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for field, found in schema["properties"].items():
        if field == "version":
            continue
        default = (
            "required" if field in schema.get("required", ()) else f"`{json.dumps(found.get('default'))}`"
        )
        rows.append(f"| `{field}` | {kind(found)} | {default} | {cell(found.get('description', ''))} |")
    return "\n".join(rows)


LIMITS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}", "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters", "minItems": "≥ {} items", "maxItems": "≤ {} items", "pattern": "matches `{}`",
}  # fmt: skip


def kind(schema: dict[str, Any]) -> str:
    """The type of a value, with its limits, in one table cell."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        found = f"[{name}](contracts.md#{name.lower()})"
    elif "anyOf" in schema:
        found = " or ".join(kind(choice) for choice in schema["anyOf"])
    elif "enum" in schema or "const" in schema:
        found = ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    elif "prefixItems" in schema:
        return "[" + ", ".join(kind(item) for item in schema["prefixItems"]) + "]"
    elif schema.get("type") == "array":
        found = f"list of {kind(schema.get('items', {}))}"
    elif isinstance(schema.get("additionalProperties"), dict):
        found = f"object of {kind(schema['additionalProperties'])}"
    else:
        found = schema.get("type", "any")
    limits = [cell(text.format(schema[key])) for key, text in LIMITS.items() if key in schema]
    return ", ".join([found, *limits])


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
