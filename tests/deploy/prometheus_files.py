"""The files under deploy/prometheus, read."""

from __future__ import annotations

import re
from typing import Any

import yaml
from programs import ROOT
from prometheus_client import CollectorRegistry

FOLDER = ROOT / "deploy" / "prometheus"

METRIC = re.compile(r"\b(?:metareward|process)_[a-z_]+\b")
SELECTOR = re.compile(r"\b((?:metareward|process)_[a-z_]+)(?:\{([^}]*(?:\{[^}]*\}[^}]*)*)\})?")
MATCHER = re.compile(r'([a-z_]+) *(?:=~|!~|!=|=) *"')


def rules(file: str, kind: str) -> dict[str, dict[str, Any]]:
    """The rules of a file by name; `kind` is alert or record."""
    groups = yaml.safe_load((FOLDER / file).read_text())["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"]}


def scrape_jobs(file: str = "prometheus.yml") -> dict[str, dict[str, Any]]:
    """What is scraped, by job."""
    return {job["job_name"]: job for job in yaml.safe_load((FOLDER / file).read_text())["scrape_configs"]}


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Each series that an expression reads, with the names of the labels that it asks for."""
    return [(name, set(MATCHER.findall(labels or ""))) for name, labels in SELECTOR.findall(expression)]


def defined_series(*registries: CollectorRegistry) -> dict[str, set[str]]:
    """Every series that registries would expose, with its labels, used or not."""
    series: dict[str, set[str]] = {}
    for registry in registries:
        for collector in list(registry._collector_to_names):
            labels = set(getattr(collector, "_labelnames", ()))
            kind = getattr(collector, "_type", "")
            for metric in collector.describe() if hasattr(collector, "describe") else collector.collect():
                suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
                if not kind:  # the process collector makes finished families
                    suffixes = ["_total"] if metric.type == "counter" else [""]
                if getattr(collector, "_upper_bounds", [0])[0] < 0:
                    suffixes.remove("_sum")  # it could fall, so it is not exposed
                for suffix in suffixes:
                    series[metric.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return series
