"""A real Prometheus with this project's configuration, scraping what a test started, every second."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from programs import program
from prometheus_files import FOLDER
from servers import START_TIMEOUT_S, STOP_TIMEOUT_S, free_port


class PrometheusServer:
    """Prometheus on 127.0.0.1. `targets` are `host:port` by job; they take the place of the discovery by name."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        configuration: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = [str(FOLDER / name) for name in configuration["rule_files"]]
        configuration["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": [targets[job["job_name"]]]}]}
            for job in configuration["scrape_configs"]
            if job["job_name"] in targets
        ]
        self._configuration = folder / "prometheus.yml"
        self._configuration.write_text(yaml.safe_dump(configuration))
        self._folder = folder
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{free_port()}", timeout=10.0)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> PrometheusServer:
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={self._configuration}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._client.base_url.port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if self._client.get("/-/ready").is_success:
                    return self
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.__exit__()
                self._log.seek(0)
                raise RuntimeError(f"Prometheus does not start:\n{self._log.read()[-2000:].decode()}")
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
        self._client.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now, each with `metric` and `value` (time, text)."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]
