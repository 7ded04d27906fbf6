"""The dashboard's JSON: sound, and what deploy/grafana/dashboard.py writes. Its queries are run in test_dashboard."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import yaml
from compose_files import compose
from programs import ROOT, program, run
from prometheus_files import defined_series, selectors

from service.observability.metrics import Metrics, WorkerMetrics

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((FOLDER / "dashboards" / "metareward.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel.get("targets", [])]

sys.path.insert(0, str(FOLDER))
import dashboard  # noqa: E402


def test_the_file_is_what_the_lists_say() -> None:
    assert dashboard.dashboard() == DASHBOARD


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids) > 30
    places = [panel["gridPos"] for panel in PANELS]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in itertools.combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_every_panel_asks_the_chosen_data_source() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["targets"]
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": variable["query"], "uid": f"${{{variable['name']}}}"}


def test_the_data_source_and_the_folder_are_provisioned() -> None:
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (variable,) = DASHBOARD["templating"]["list"]
    assert (source["type"], source["uid"]) == (variable["query"], variable["current"]["value"])
    grafana = compose()["services"]["grafana"]
    assert source["url"].removeprefix("$") in grafana["environment"]
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/metareward.yml").read_text())["providers"]
    mounts = dict(mount.split(":")[1::-1] for mount in grafana["volumes"])
    assert mounts[provider["options"]["path"]] == "../deploy/grafana/dashboards"


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=[f"{t}-{q['refId']}" for t, q in QUERIES])
def test_a_query_reads_series_that_exist(title: str, target: dict[str, str]) -> None:
    series = defined_series(Metrics().registry, WorkerMetrics().registry)
    for name, labels in selectors(target["expr"]):
        assert name in series
        assert labels <= series[name] | {"job", "instance"}


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{n}", "expr": target["expr"].replace("$__rate_interval", "1m")}
        for n, (_, target) in enumerate(QUERIES)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in run(program("promtool"), "check", "rules", file)
