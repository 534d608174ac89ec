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
ENV_FILES = ("settings.env", "nodes.env", "api.env", "administrator.env", "flower.env")
README = (FOLDER / "README.md").read_text()
#: How much earlier than the grace period a soft shutdown ends; Celery needs 15 s of it to hand a job back and leave.
SOFTER_S = 30


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


(KUSTOMIZATION,) = read("kustomization.yaml")
MANIFESTS = [manifest for name in KUSTOMIZATION["resources"] for manifest in read(name)]
#: Name -> pod spec of everything that runs.
PODS: dict[str, dict[str, Any]] = {
    manifest["metadata"]["name"]: manifest["spec"]["template"]["spec"]
    for manifest in MANIFESTS
    if manifest["kind"] in ("Deployment", "Job")
}
CONTAINERS: dict[str, dict[str, Any]] = {name: pod["containers"][0] for name, pod in PODS.items()}
NODES = PODS.keys() - {"bootstrap", "migrate", "flower", "api"}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_manifests_keep_kubernetes_schema() -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        give_up("kubernetes-validate is not installed: pip install kubernetes-validate")
    import kubernetes_validate

    for manifest in MANIFESTS:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_kustomize_renders_them(tmp_path: Path) -> None:
    """With the files that README.md has one write."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder)
    for name in ENV_FILES:
        (folder / name).write_text("A=1\n")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(done.stdout)]
    assert kinds.count("Secret") == 4 and kinds.count("ConfigMap") == 1
    assert "name: nodes\n" not in done.stdout  # the generated name took the place of every reference


def test_every_file_is_listed_and_no_secret_is_kept() -> None:
    names = {path.name for path in FOLDER.glob("*.yaml")}
    assert names == {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    generators = [*KUSTOMIZATION["configMapGenerator"], *KUSTOMIZATION["secretGenerator"]]
    assert sorted(env for one in generators for env in one["envs"]) == sorted(ENV_FILES)
    assert all(name in README for name in ENV_FILES)
    assert (FOLDER / ".gitignore").read_text() == "*.env\n"


def test_no_pod_has_more_rights_than_it_needs() -> None:
    (namespace,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in PODS.items():
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


def test_a_secret_reaches_who_needs_it() -> None:
    only = {"bootstrap": {"administrator"}, "flower": {"flower"}, "api": {"nodes", "api"}}
    for name, container in CONTAINERS.items():
        secrets = {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
        assert secrets == only.get(name, {"nodes"}), name


def test_nodes_are_those_of_the_compose_file() -> None:
    services = {name: service for name, service in COMPOSE.items() if "cpu" in service.get("profiles", [])}
    assert services.keys() == NODES
    for name, service in services.items():
        container = CONTAINERS[name]
        assert container["args"] == service["command"], name
        (limit,) = re.findall(r":-(\d+)g\}", service["mem_limit"])
        assert container["resources"]["limits"]["memory"] == f"{limit}Gi", name
        assert container["readinessProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:], name
        grace_s = int(service["stop_grace_period"].removesuffix("s"))
        assert PODS[name]["terminationGracePeriodSeconds"] == grace_s, name
        assert f"SOFT_SHUTDOWN_S={grace_s - SOFTER_S}" in README
    for job in ("bootstrap", "migrate", "api"):
        assert CONTAINERS[job]["args"] == COMPOSE[job]["command"]


def test_nodes_differ_in_family_and_memory_only() -> None:
    shapes = set()
    for name in NODES:
        text = re.sub(rf"\b{name}\b", "FAMILY", yaml.safe_dump(PODS[name]))
        shapes.add(re.sub(r"memory: \S+", "memory: N", text))
    assert len(shapes) == 1
