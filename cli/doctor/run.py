"""``scenefleet doctor``: run all checks, and show findings with advice."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.markup import escape

from cli import screen
from cli.doctor import machine_checks, plan_checks, service_checks
from cli.doctor.findings import Finding, fail
from shared.errors import InvalidRequest, ModelUnavailable, ScenefleetError
from shared.settings import Settings, get_settings
from worker.models.placement.plan import MachinePlacement


def run(*, as_json: bool) -> int:
    """Show every finding; returns 1 when something essential is broken."""
    settings = get_settings()
    findings, plan = examine(settings), find_plan(settings)
    broken = any(finding.state == "fail" for finding in findings)
    document = {"healthy": not broken, "checks": [asdict(finding) for finding in findings]}
    document["plan"] = asdict(plan) if plan is not None else None
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


def examine(settings: Settings) -> list[Finding]:
    """Run every check; an error of scenefleet's becomes a ``fail``."""
    findings: list[Finding] = []
    for name, check in (*machine_checks.CHECKS, *plan_checks.CHECKS, *service_checks.CHECKS):
        try:
            findings += check(settings)
        except ScenefleetError as error:
            findings.append(fail(name, str(error)))
    return findings


def find_plan(settings: Settings) -> MachinePlacement | None:
    """The plan of this machine; None where a finding says why there is none."""
    try:
        return plan_checks.place(settings, plan_checks.survey_machine())
    except (InvalidRequest, ModelUnavailable):
        return None
