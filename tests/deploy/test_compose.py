"""docker/compose.yaml: valid, and every name, port and path in it compared with what it names."""

from __future__ import annotations

import re
from typing import Any

import compose_spec
import pytest
import yaml
from compose_files import FOLDER, compose, example_environment, interpolate, variables
from programs import ROOT
from prometheus_files import scrape_jobs
from test_docker import STAGES

from service.settings import Settings

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: SERVICES[name] for name in ("api", "worker", "migrate")}
TEXT = (FOLDER / "compose.yaml").read_text()


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration[:-1])


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_it_is_a_compose_file(files: tuple[str, ...]) -> None:
    read = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose(*files)))
    read.validate()
    assert set(read.service_names()) == {"api", "migrate", "worker", "postgres", "redis", "prometheus", "grafana"}


def test_a_wrong_file_would_be_refused() -> None:
    wrong = compose()
    wrong["services"]["api"]["prots"] = ["8000"]
    with pytest.raises(ValueError, match="prots"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(wrong))
    wrong = compose()
    wrong["services"]["api"]["networks"] = ["nowhere"]
    with pytest.raises(ValueError, match="nowhere"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(wrong)).validate()


def test_the_example_lists_what_is_asked_for() -> None:
    asked = variables(TEXT) | variables((FOLDER / "compose.gpu.yaml").read_text())
    assert asked == set(example_environment())


def test_it_does_not_start_without_secrets() -> None:
    for name in re.findall(r"\$\{(\w+):\?", TEXT):
        with pytest.raises(ValueError, match=name):
            interpolate(TEXT, {**example_environment(), name: ""})
    assert not re.search(r"(PASSWORD|SECRET|KEY)\w*: *[\"']?[a-z0-9]", TEXT)


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_settings(name: str) -> None:
    environment = OURS[name]["environment"]
    assert set(environment) <= {field.upper() for field in Settings.model_fields}
    given = {key.lower(): value for key, value in environment.items() if value is not None}
    Settings(_env_file=None, host="0.0.0.0", **given)


@pytest.mark.parametrize("name", OURS)
def test_it_builds_a_target_that_exists(name: str) -> None:
    build = OURS[name]["build"]
    assert build["target"] in STAGES
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert compose("compose.yaml", "compose.gpu.yaml")["services"]["worker"]["build"]["target"] in STAGES
    arguments = {a for s in STAGES.values() for i in s.instructions if i.word == "ARG" for a in i.assignments}
    assert set(build.get("args", {})) <= arguments


def test_only_the_api_and_grafana_are_published_and_only_here() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "api": [f"127.0.0.1:8000:{Settings.model_fields['port'].default}"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_what_is_waited_for_can_come() -> None:
    for service in SERVICES.values():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                # The worker's health check is its image's.
                assert "healthcheck" in SERVICES[other] or "build" in SERVICES[other]
            if wait["condition"] == "service_completed_successfully":
                assert SERVICES[other]["restart"] == "no"
            assert set(service["networks"]) & set(SERVICES[other]["networks"])


def test_a_process_may_drain_before_it_is_killed() -> None:
    for name in ("api", "worker"):
        defaults = {field: Settings.model_fields[field].default for field in ("drain_delay_s", "drain_timeout_s")}
        assert seconds(SERVICES[name]["stop_grace_period"]) > sum(defaults.values())


def test_prometheus_reaches_what_it_scrapes() -> None:
    for job in scrape_jobs().values():
        for discovery in job.get("dns_sd_configs", []):
            for name in discovery["names"]:
                assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_what_is_mounted_is_there() -> None:
    volumes = compose()["volumes"]
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith(".") and source != "./models":
                assert (FOLDER / source).exists(), source
            elif not source.startswith("."):
                assert source in volumes
    assert compose()["networks"]["data"] == {"internal": True}


@pytest.mark.parametrize("name", [n for n in SERVICES if n != "postgres"])
def test_containers_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
