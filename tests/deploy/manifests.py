"""The overlays under deploy/kubernetes as kustomize builds them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from programs import ROOT, run

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("gpu", "cpu-demo")
WORKLOADS = {"Deployment", "StatefulSet", "Job"}

Manifest = dict[str, Any]


@cache
def built(overlay: str) -> list[Manifest]:
    """What `kubectl kustomize` makes of an overlay."""
    if shutil.which("kubectl") is None:
        # Not to be had from a Python or Debian registry, so nobody's CI must have it.
        pytest.skip("needs the program kubectl, 1.27 or newer, for its kustomize; no cluster is asked")
    return list(yaml.safe_load_all(run("kubectl", "kustomize", FOLDER / "overlays" / overlay)))


def of_kind(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    """The manifests of some kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one of this kind and name."""
    (found,) = (m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name)
    return found


def pod_labels(workload: Manifest) -> dict[str, str]:
    """The labels that its pods have."""
    return dict(workload["spec"]["template"]["metadata"]["labels"])


def container(workload: Manifest) -> dict[str, Any]:
    """Its one container."""
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)


def environment(workload: Manifest, manifests: list[Manifest]) -> dict[str, str | None]:
    """What its container gets, from ConfigMaps too; None for what a Secret holds."""
    values: dict[str, str | None] = {}
    for source in container(workload).get("envFrom", []):
        values |= named(manifests, "ConfigMap", source["configMapRef"]["name"]).get("data", {})
    return values | {entry["name"]: entry.get("value") for entry in container(workload).get("env", [])}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector (plain labels, or matchLabels) matches; an empty one matches everything."""
    return (selector.get("matchLabels", selector)).items() <= labels.items()
