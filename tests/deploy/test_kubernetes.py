"""The overlays: valid for Kubernetes' own schemas, and every name in them compared with what it names."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_files import compose
from manifests import (
    FOLDER,
    OVERLAYS,
    WORKLOADS,
    Manifest,
    built,
    container,
    environment,
    named,
    of_kind,
    pod_labels,
    selects,
)
from prometheus_files import scrape_jobs, selectors
from test_docker import STAGES

from service.settings import Settings

OLDEST, NEWEST = "1.30", "1.37"
SECRET = yaml.safe_load((FOLDER / "secret.example.yaml").read_text())


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(request.param)


@pytest.fixture
def gpu() -> list[Manifest]:
    return built("gpu")


def default(setting: str) -> Any:
    return Settings.model_fields[setting].default


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_is_valid(manifests: list[Manifest], version: str) -> None:
    for manifest in [*manifests, SECRET]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_would_be_refused(gpu: list[Manifest]) -> None:
    wrong = deepcopy(named(gpu, "Deployment", "metareward-api"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_the_environment_is_settings(manifests: list[Manifest]) -> None:
    for workload in of_kind(manifests, *WORKLOADS):
        given = environment(workload, manifests)
        assert set(given) <= {name.upper() for name in Settings.model_fields}
        known = {name.lower(): value for name, value in given.items() if value is not None}
        Settings(_env_file=None, host="0.0.0.0", **known)


def test_secrets_are_named_and_not_contained(manifests: list[Manifest]) -> None:
    assert not list(of_kind(manifests, "Secret"))
    asked = set(re.findall(r"'secretKeyRef': \{'key': '(\w+)', 'name': '([\w-]+)'", str(manifests)))
    assert asked <= {(key, SECRET["metadata"]["name"]) for key in SECRET["stringData"]}
    settings = {name.upper(): field for name, field in Settings.model_fields.items()}
    for key in SECRET["stringData"]:
        assert "SecretStr" in str(settings[key].annotation)


def test_every_secret_setting_that_the_gpu_overlay_sets_is_in_the_example(gpu: list[Manifest]) -> None:
    used = {key for w in of_kind(gpu, *WORKLOADS) for key, value in environment(w, gpu).items() if value is None}
    assert used == set(SECRET["stringData"])


def test_ports_are_those_of_the_settings(gpu: list[Manifest]) -> None:
    api, worker = named(gpu, "Deployment", "metareward-api"), named(gpu, "StatefulSet", "metareward-worker")
    ports = {p["name"]: p["containerPort"] for p in container(api)["ports"]}
    assert ports == {"http": default("port"), "metrics": default("metrics_port")}
    ports = {p["name"]: p["containerPort"] for p in container(worker)["ports"]}
    assert ports == {"classify": default("worker_port"), "metrics": default("worker_metrics_port")}


def test_probes_ask_ports_that_are_named(manifests: list[Manifest]) -> None:
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        only = container(workload)
        names = {port["name"] for port in only["ports"]}
        for probe, path in (("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
            assert only[probe]["httpGet"]["path"] == path
            assert only[probe]["httpGet"]["port"] in names


def test_services_budgets_and_scalers_find_what_they_name(manifests: list[Manifest]) -> None:
    workloads = list(of_kind(manifests, *WORKLOADS))
    for manifest in of_kind(manifests, "Service", "PodDisruptionBudget"):
        found = [w for w in workloads if selects(manifest["spec"]["selector"], pod_labels(w))]
        assert len(found) == 1, manifest["metadata"]["name"]
        ports = {port["name"] for port in container(found[0])["ports"]}
        assert {port["targetPort"] for port in manifest["spec"].get("ports", [])} <= ports
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        # A number here would undo the scaler's at every apply.
        assert "replicas" not in named(manifests, target["kind"], target["name"])["spec"]
    for workload in workloads:
        assert selects(workload["spec"].get("selector", {}), pod_labels(workload))


def test_the_rest_layer_knows_every_worker_that_the_scaler_may_start(gpu: list[Manifest]) -> None:
    worker = named(gpu, "StatefulSet", "metareward-worker")
    service = named(gpu, "Service", worker["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    most = named(gpu, "HorizontalPodAutoscaler", "metareward-worker")["spec"]["maxReplicas"]
    urls = environment(named(gpu, "Deployment", "metareward-api"), gpu)["ENGINE_URL"]
    assert urls is not None
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert urls.split(",") == [f"http://metareward-worker-{n}.{host}" for n in range(most)]


def test_a_process_may_drain_before_it_is_killed(manifests: list[Manifest]) -> None:
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        given = environment(workload, manifests)
        delay_s, timeout_s = float(given["DRAIN_DELAY_S"] or 0), float(given["DRAIN_TIMEOUT_S"] or 0)
        probe = container(workload)["readinessProbe"]
        # Long enough for the endpoints to forget it, and for what is in flight to end before the kill.
        assert delay_s >= probe["periodSeconds"] * probe["failureThreshold"]
        assert workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= delay_s + timeout_s + 10


def test_pods_are_hardened(manifests: list[Manifest]) -> None:
    for workload in of_kind(manifests, *WORKLOADS):
        pod, only = workload["spec"]["template"]["spec"], container(workload)
        user = next(i.rest for i in STAGES["runtime"].instructions if i.word == "USER")
        assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        named(manifests, "ServiceAccount", pod["serviceAccountName"])
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(only["resources"]) == {"requests", "limits"}


def test_what_must_be_written_can_be(manifests: list[Manifest]) -> None:
    folders = [i.assignments.get("DATA_DIR") for i in STAGES["runtime"].instructions if i.word == "ENV"]
    for workload in of_kind(manifests, *WORKLOADS):
        mounts = {m["mountPath"]: m for m in container(workload)["volumeMounts"]}
        volumes = {v["name"]: v for v in workload["spec"]["template"]["spec"]["volumes"]}
        assert {m["name"] for m in mounts.values()} == set(volumes)
        assert "/tmp" in mounts
        if workload["kind"] != "Job":
            assert not mounts[folders[0]].get("readOnly", False)
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "metareward-models")
            assert claim == "metareward-models" or named(manifests, "PersistentVolumeClaim", claim)


def test_images_are_those_that_are_built(manifests: list[Manifest]) -> None:
    known = {s["image"] for files in (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")) for s in images(*files)}
    for workload in of_kind(manifests, *WORKLOADS):
        assert container(workload)["image"] in known


def images(*files: str) -> list[dict[str, Any]]:
    return [service for service in compose(*files)["services"].values() if "build" in service]


def test_the_gpu_overlay_asks_for_gpus_and_its_image(gpu: list[Manifest]) -> None:
    worker = container(named(gpu, "StatefulSet", "metareward-worker"))
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["image"].endswith("-cuda")
    for workload in of_kind(gpu, "Deployment", "StatefulSet"):
        given = environment(workload, gpu)
        mount = next(m for m in container(workload)["volumeMounts"] if m["name"] == "models")
        assert all(str(given[name]).startswith(mount["mountPath"]) for name in ("CHECKPOINT", "BACKBONE"))


def allows(policies: list[Manifest], direction: str, pod: dict[str, str], other: dict[str, str], *ports: Any) -> bool:
    peer = {"ingress": "from", "egress": "to"}[direction]
    return any(
        selects(policy["spec"]["podSelector"], pod)
        and any(
            any("podSelector" in p and selects(p["podSelector"], other) for p in rule.get(peer, []))
            and any(port["port"] in ports for port in rule["ports"])
            for rule in policy["spec"].get(direction) or []
        )
        for policy in policies
    )


def test_only_the_named_ways_through_the_network_are_open(gpu: list[Manifest]) -> None:
    policies = list(of_kind(gpu, "NetworkPolicy"))
    deny = named(gpu, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    api = pod_labels(named(gpu, "Deployment", "metareward-api"))
    worker = pod_labels(named(gpu, "StatefulSet", "metareward-worker"))
    migrate = pod_labels(named(gpu, "Job", "metareward-migrate"))
    postgres, redis = ({"app.kubernetes.io/name": name} for name in ("postgresql", "redis"))
    assert allows(policies, "egress", api, worker, default("worker_port"))
    assert allows(policies, "ingress", worker, api, "classify")
    assert allows(policies, "egress", api, postgres, 5432)
    assert allows(policies, "egress", api, redis, 6379)
    assert allows(policies, "egress", migrate, postgres, 5432)
    assert not allows(policies, "egress", worker, postgres, 5432)
    assert not allows(policies, "ingress", worker, migrate, "classify")
    for component, setting in ((api, "metrics"), (worker, "metrics")):
        rules = [
            rule
            for policy in policies
            if selects(policy["spec"]["podSelector"], component)
            for rule in policy["spec"].get("ingress", [])
            if {"protocol": "TCP", "port": setting} in rule["ports"]
        ]
        assert [rule["from"] for rule in rules] == [
            [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        ]


def test_the_workers_scaler_asks_for_a_metric_that_the_adapter_gives(gpu: list[Manifest]) -> None:
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter-rules.yaml").read_text())["rules"]
    (metric,) = named(gpu, "HorizontalPodAutoscaler", "metareward-worker")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["matches"]
    ((series, labels),) = selectors(rule["seriesQuery"])
    assert series == metric["pods"]["metric"]["name"]
    assert labels == {"job", *rule["resources"]["overrides"]}
    wanted = int(metric["pods"]["target"]["averageValue"])
    assert default("max_batch_tokens") <= wanted < default("max_queue_tokens") / 2


def test_prometheus_finds_the_pods(gpu: list[Manifest]) -> None:
    (job,) = scrape_jobs("kubernetes.yml").values()
    namespace = named(gpu, "Namespace", "metareward")["metadata"]["name"]
    assert job["kubernetes_sd_configs"][0]["namespaces"]["names"] == [namespace]
    kept = {
        r["source_labels"][0].rpartition("pod_label_")[2]: r["regex"] for r in job["relabel_configs"] if "regex" in r
    }
    for workload in of_kind(gpu, "Deployment", "StatefulSet"):
        labels = {re.sub(r"[./-]", "_", name): value for name, value in pod_labels(workload).items()}
        assert labels["app_kubernetes_io_name"] == kept["app_kubernetes_io_name"]
        assert re.fullmatch(kept["app_kubernetes_io_component"], labels["app_kubernetes_io_component"])
        assert "metrics" in {port["name"] for port in container(workload)["ports"]}


def test_the_first_key_is_made_as_the_schema_is(gpu: list[Manifest]) -> None:
    job = yaml.safe_load((FOLDER / "first-key.yaml").read_text())
    migrate = next(manifest for manifest in of_kind(gpu, "Job"))
    kubernetes_validate.validate(job, NEWEST, strict=True)
    assert job["metadata"]["namespace"] == migrate["metadata"]["namespace"]
    assert job["spec"]["backoffLimit"] == 0, "one key, not one a try"
    pod, pattern = job["spec"]["template"]["spec"], migrate["spec"]["template"]["spec"]
    [container], [container_pattern] = pod["containers"], pattern["containers"]
    assert container["args"][:2] == ["keys", "create"]
    assert container | {"name": "", "args": []} == container_pattern | {"name": "", "args": []}
    assert pod | {"containers": [], "restartPolicy": ""} == pattern | {"containers": [], "restartPolicy": ""}
    labels, network = job["spec"]["template"]["metadata"]["labels"], "app.kubernetes.io/component"
    assert labels[network] == migrate["spec"]["template"]["metadata"]["labels"][network], "PostgreSQL lets it in"


def test_the_demo_makes_its_first_key_where_the_server_looks_for_it() -> None:
    demo = next(of_kind(built("cpu-demo"), "Deployment"))["spec"]["template"]["spec"]
    [first], [api] = demo["initContainers"], demo["containers"]
    assert (first["image"], first["securityContext"]) == (api["image"], api["securityContext"])
    assert "--if-none" in first["args"], "a pod that starts again makes no second one"
    mounts = {mount["mountPath"]: mount["name"] for mount in api["volumeMounts"]}
    assert all(mounts[mount["mountPath"]] == mount["name"] for mount in first["volumeMounts"])
    assert "/var/lib/metareward" in {mount["mountPath"] for mount in first["volumeMounts"]}
