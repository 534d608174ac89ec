"""The Kubernetes manifests: valid by Kubernetes' schema, as safe as the compose file, and in step with it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.assets import give_up

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUBERNETES = "1.33"
ENV_FILES = ("settings.env", "nodes.env", "administrator.env", "flower.env")
#: What Celery needs beyond its soft shutdown to hand a job back and leave.
LEAVE_S = 15


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.fixture(scope="module")
def kustomization() -> dict[str, Any]:
    (found,) = read("kustomization.yaml")
    return found


@pytest.fixture(scope="module")
def manifests(kustomization: dict[str, Any]) -> list[dict[str, Any]]:
    return [manifest for name in kustomization["resources"] for manifest in read(name)]


@pytest.fixture(scope="module")
def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name -> pod spec of everything that runs."""
    return {
        manifest["metadata"]["name"]: manifest["spec"]["template"]["spec"]
        for manifest in manifests
        if manifest["kind"] in ("Deployment", "Job")
    }


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def test_manifests_keep_kubernetes_schema(manifests: list[dict[str, Any]]) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        give_up("kubernetes-validate is not installed: pip install kubernetes-validate")
    import kubernetes_validate

    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_kustomize_renders_them(tmp_path: Path) -> None:
    """With the files that README.md has one write."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder)
    for name in ENV_FILES:
        (folder / name).write_text("A=1\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(done.stdout)]
    assert kinds.count("Secret") == 3 and kinds.count("ConfigMap") == 1
    assert "name: nodes\n" not in done.stdout  # the generated name took the place of every reference


def test_every_file_is_listed_and_no_secret_is_kept(kustomization: dict[str, Any]) -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == {
        "kustomization.yaml",
        *kustomization["resources"],
    }
    generators = [*kustomization["configMapGenerator"], *kustomization["secretGenerator"]]
    assert sorted(env for one in generators for env in one["envs"]) == sorted(ENV_FILES)
    assert all(name in (FOLDER / "README.md").read_text() for name in ENV_FILES)
    assert (FOLDER / ".gitignore").read_text() == "*.env\n"


def test_no_pod_has_more_rights_than_it_needs(
    manifests: list[dict[str, Any]], pods: dict[str, dict[str, Any]]
) -> None:
    (namespace,) = [manifest for manifest in manifests if manifest["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods.items():
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & pod.keys(), name
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == 10001, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert all(volume.keys() == {"name", "emptyDir"} for volume in pod["volumes"]), name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in container["resources"]["limits"], name


def test_an_administrators_secret_reaches_one_job(pods: dict[str, dict[str, Any]]) -> None:
    for name, pod in pods.items():
        (container,) = pod["containers"]
        secrets = {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
        assert secrets == {{"bootstrap": "administrator", "flower": "flower"}.get(name, "nodes")}, name


def test_nodes_are_those_of_the_compose_file(
    pods: dict[str, dict[str, Any]], compose: dict[str, Any]
) -> None:
    services = {name: service for name, service in compose.items() if "cpu" in service.get("profiles", [])}
    assert pods.keys() - {"bootstrap", "migrate", "flower"} == services.keys()
    for name, service in services.items():
        (container,) = pods[name]["containers"]
        assert container["args"] == service["command"], name
        (limit,) = re.findall(r":-(\d+)g\}", service["mem_limit"])
        assert container["resources"]["limits"]["memory"] == f"{limit}Gi", name
        assert container["readinessProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:], name
        grace_s = int(service["stop_grace_period"].removesuffix("s"))
        assert pods[name]["terminationGracePeriodSeconds"] == grace_s, name
        assert f"SOFT_SHUTDOWN_S={grace_s - 30}" in (FOLDER / "README.md").read_text()
        assert grace_s - 30 + LEAVE_S < grace_s
    for job in ("bootstrap", "migrate"):
        assert pods[job]["containers"][0]["args"] == compose[job]["command"]


def test_nodes_differ_in_family_and_memory_only(pods: dict[str, dict[str, Any]]) -> None:
    shapes = set()
    for name in pods.keys() - {"bootstrap", "migrate", "flower"}:
        text = re.sub(rf"\b{name}\b", "FAMILY", yaml.safe_dump(pods[name]))
        shapes.add(re.sub(r"memory: \S+", "memory: N", text))
    assert len(shapes) == 1
