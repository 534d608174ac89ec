"""``scenefleet doctor``: run all checks, and show findings with advice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.markup import escape

from cli import screen
from cli.doctor import machine_checks, plan_checks, service_checks
from cli.doctor.findings import Finding, fail
from shared.errors import InvalidRequest, ModelUnavailable, ScenefleetError
from shared.settings import Settings, get_settings
from worker.models.placement.plan import MachinePlacement

#: Checks by the name under which an error of scenefleet's that one raises becomes a ``fail``.
CHECKS: dict[str, Callable[[Settings], Iterable[Finding]]] = {
    "python": machine_checks.check_python,
    "packages": machine_checks.check_packages,
    "plug-ins": machine_checks.check_plugins,
    "servers": machine_checks.check_servers,
    "models": machine_checks.check_models,
    "disk": machine_checks.check_disks,
    "privacy": machine_checks.check_privacy,
    "up": machine_checks.check_up,
    "plan": plan_checks.check,
    "postgres": service_checks.check_postgres,
    "redis": service_checks.check_redis,
    "broker": service_checks.check_broker,
    "storage": service_checks.check_storage,
    "nodes": service_checks.check_nodes,
}


def run(*, as_json: bool) -> int:
    """Show every finding; returns 1 when something essential is broken."""
    settings = get_settings()
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check(settings)
        except ScenefleetError as error:
            findings.append(fail(name, str(error)))
    plan = None
    # A finding says why there is none.
    with suppress(InvalidRequest, ModelUnavailable):
        plan = plan_checks.place(settings, plan_checks.survey_machine())
    broken = any(finding.state == "fail" for finding in findings)
    document = {
        "healthy": not broken,
        "checks": [asdict(finding) for finding in findings],
        "plan": asdict(plan) if plan is not None else None,
    }
    screen.answer(document, lambda: _render(findings, plan), as_json=as_json)
    return int(broken)


def _render(findings: list[Finding], plan: MachinePlacement | None) -> Group:
    table = screen.make_table("", "check", "~found")
    for finding in findings:
        detail = escape(finding.detail)
        if finding.advice:
            detail += f"\n[bold]{escape(finding.advice)}[/bold]"
        table.add_row(screen.styled(finding.state), finding.check, detail)
    parts: list[RenderableType] = [table]
    for part in plan_checks.tables(plan) if plan is not None else ():
        parts += ["", part]
    failed = ", ".join(finding.check for finding in findings if finding.state == "fail")
    verdict = f"[red]broken: {failed}[/red]" if failed else "[green]all essential checks pass[/green]"
    return Group(*parts, "", verdict)
