"""Runs docker/Dockerfile without Docker, and then what it made: `python docker/rehearse.py api worker-cpu`.

Each stage is an overlay over this machine's own files (which stand for the base image: Debian with a Python that has
pip), entered by chroot. So a RUN is run as it is written, a COPY takes only what .dockerignore lets through, and a
process is started with the image's user, environment, folder and command, on a root that it cannot write.

Needs root and the right to mount, Linux with overlayfs, a package index, and some memory: the layers lie in a tmpfs.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from copy import deepcopy
from pathlib import Path

from dockerfile import DOCKERFILE, ROOT, Instruction, Stage, is_ignored, read_stages

RUN_TIMEOUT_S = 540.0
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
# Stands for the base image's Python.
BASE_PYTHON = Path(sys.base_prefix).resolve() / "bin" / "python"
# What a build on this machine is given besides: how it reaches its package index.
BUILD_SETTINGS = ("PIP_", "TORCH_INDEX_URL", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


class Image:
    """What the stages of one lineage left: layers, environment, folder, user, command."""

    def __init__(self, workshop: Path) -> None:
        self.workshop = workshop
        self.lower: list[Path] = []
        path = f"{BASE_PYTHON.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.environment = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}
        self.folder = "/"
        self.user = "0:0"
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.health: list[str] = []

    def mount(self, name: str, *, read_only: bool = False) -> Path:
        """This image's files as one tree, with a new layer on top."""
        layer, work, tree = (self.workshop / f"{name}.{part}" for part in ("layer", "work", "tree"))
        for folder in (layer, work, tree):
            folder.mkdir(parents=True)
        lower = ":".join([*map(str, reversed(self.lower)), "/"])
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={layer},workdir={work}", str(tree))
        for folder in BASE_PYTHON.parents:  # in the layer only: a home folder is often closed to others
            here = tree / folder.relative_to("/")
            here.chmod(here.stat().st_mode | 0o011)
        if not read_only:
            self.lower = [*self.lower, layer]
        for folder in ("proc", "dev"):
            mount("--rbind", f"/{folder}", str(tree / folder))
        return tree

    def enter(self, tree: Path, command: list[str], **more: str) -> list[str]:
        """The command line that runs `command` in the tree as this image would."""
        environment = [f"{name}={value}" for name, value in {**self.environment, **more}.items()]
        user = [] if self.user == "0:0" else ["setpriv", *self._as_user()]
        inside = ["env", "-i", *environment, "sh", "-c", 'cd "$0" && exec "$@"', self.folder, *user, *command]
        return ["chroot", str(tree), *inside]

    def _as_user(self) -> list[str]:
        user, _, group = self.user.partition(":")
        return [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]


def mount(*arguments: str) -> None:
    """mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def expand(text: str, values: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced, as Docker does outside RUN."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values.get(found[1] or found[2], ""), text)


def build(stages: dict[str, Stage], target: str, workshop: Path, built: dict[str, Image]) -> Image:
    """Run a stage and those it needs; each is run once."""
    if target in built:
        return built[target]
    stage = stages[target]
    image = deepcopy(build(stages, stage.base, workshop, built)) if stage.base in stages else Image(workshop)
    for needed in (i.copied[0] for i in stage.instructions if i.word == "COPY"):
        if needed is not None:
            build(stages, needed, workshop, built)
    tree = image.mount(target)
    arguments: dict[str, str] = {}
    print(f"== {target}", flush=True)
    for instruction in stage.instructions:
        follow(instruction, image, tree, arguments)
    built[target] = image
    return image


def follow(instruction: Instruction, image: Image, tree: Path, arguments: dict[str, str]) -> None:
    """Do what one instruction says."""
    known = {**arguments, **image.environment}
    match instruction.word:
        case "ARG":
            for name, value in instruction.assignments.items():
                arguments[name] = os.environ.get(name, expand(value, known))
        case "ENV":
            image.environment |= {name: expand(value, known) for name, value in instruction.assignments.items()}
        case "WORKDIR":
            image.folder = instruction.rest
            (tree / image.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = instruction.rest
        case "COPY":
            copy(instruction, image, tree)
        case "RUN":
            print(f"   RUN {instruction.rest[:110]}", flush=True)
            given = {n: v for n, v in os.environ.items() if n.startswith(BUILD_SETTINGS) and n not in image.environment}
            command = instruction.exec_form or ["sh", "-c", instruction.rest]
            line = image.enter(tree, command, **{**given, **arguments})
            subprocess.run(line, check=True, timeout=RUN_TIMEOUT_S, stdin=subprocess.DEVNULL)
        case "ENTRYPOINT":
            image.entrypoint = instruction.exec_form or []
        case "CMD":
            image.command = instruction.exec_form or []
        case "HEALTHCHECK":
            image.health = instruction.exec_form or []
        case "LABEL" | "EXPOSE" | "STOPSIGNAL":
            pass
        case word:
            raise SystemExit(f"error: {DOCKERFILE}: no rehearsal of {word}")


def copy(instruction: Instruction, image: Image, tree: Path) -> None:
    """COPY from the context or from another stage."""
    stage, sources, destination = instruction.copied
    target = tree / os.path.join(image.folder, destination).lstrip("/")
    for source in sources:
        origin = (ROOT if stage is None else image.workshop / f"{stage}.tree") / source.lstrip("/")
        into = target / origin.name if destination.endswith("/") else target
        into.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, into, symlinks=True, dirs_exist_ok=True, ignore=None if stage else _ignore)
        else:
            shutil.copy2(origin, into)


def _ignore(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if is_ignored(str((Path(folder) / name).relative_to(ROOT)))}


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Container:
    """A process of an image: as its user, on a root that it cannot write, its data folder and /tmp its own."""

    def __init__(self, image: Image, name: str, command: list[str] | None = None, **settings: str) -> None:
        self.image, self.name, self.settings = image, name, settings
        self.tree = image.mount(name, read_only=True)
        uid, _, gid = image.user.partition(":")
        for folder, mode in (("tmp", "1777"), (image.environment["DATA_DIR"].lstrip("/"), "0700")):
            mount("-t", "tmpfs", "tmpfs", "-o", f"uid={uid},gid={gid},mode={mode}", str(self.tree / folder))
        mount("-o", "remount,ro", str(self.tree))
        line = image.enter(self.tree, [*image.entrypoint, *(command or image.command)], **settings)
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL)

    def wait_until_healthy(self) -> float:
        """Seconds until the image's own health check passes."""
        started = time.monotonic()
        while time.monotonic() < started + READY_TIMEOUT_S:
            if self.process.poll() is not None:
                raise SystemExit(f"error: {self.name} ended with {self.process.returncode}")
            line = self.image.enter(self.tree, self.image.health, **self.settings)
            if subprocess.run(line, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode == 0:
                return time.monotonic() - started
            time.sleep(0.5)
        raise SystemExit(f"error: {self.name} is not healthy after {READY_TIMEOUT_S:g} s")

    def stop(self) -> None:
        """SIGTERM, as `docker stop`; it must end by itself, and in good order."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_TIMEOUT_S)
        if status not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise SystemExit(f"error: {self.name} ended with {status} after SIGTERM")
        print(f"   {self.name} stopped with {status}", flush=True)


def check_versions(container: Container) -> None:
    """Every installed distribution must be one of constraints.txt, in its version; only a worker has PyTorch."""
    script = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    line = container.image.enter(container.tree, ["python", "-c", script])
    installed = subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = {canonical(pin) for pin in lines if "==" in pin}
    found = {canonical(pin) for pin in installed if not pin.startswith("metareward==")}
    if strangers := found - wanted:
        raise SystemExit(f"error: {container.name} has what constraints.txt has not: {sorted(strangers)}")
    if ("torch" in {pin.partition("==")[0] for pin in found}) == container.name.endswith("api"):
        raise SystemExit(f"error: {container.name}: the worker needs torch, and the REST layer must not have it")
    folder = container.tree / container.image.environment["PATH"].split("/bin")[0].lstrip("/")
    megabytes = sum(file.lstat().st_size for file in folder.rglob("*")) / 1e6
    print(f"   {len(found)} distributions, all as constraints.txt says; {megabytes:.0f} MB", flush=True)


def canonical(pin: str) -> str:
    """`name==version`, the name as package indexes compare it, the version without what a build adds (`+cpu`)."""
    name, _, version = pin.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.partition('+')[0]}"


def ask(url: str) -> str:
    """What a GET answers, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return f"{answer.status} {answer.read(300).decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read(300).decode()}"


def rehearse(targets: list[str], workshop: Path) -> None:
    """Build the targets, then run them together: a worker, and a REST layer that asks it."""
    stages, built = read_stages(), {}
    images = {target: build(stages, target, workshop, built) for target in targets}
    key, worker_url = secrets.token_hex(32), ""
    running: list[Container] = []
    try:
        for target in sorted(targets, key=lambda name: name == "api"):  # the REST layer last: it asks the worker
            image, port, metrics_port = images[target], free_port(), free_port()
            settings = {"HOST": "127.0.0.1", "ENGINE_API_KEY": key}
            if target == "api":
                settings |= {"PORT": str(port), "METRICS_PORT": str(metrics_port), "ENGINE_URL": worker_url}
            else:
                settings |= {"WORKER_PORT": str(port), "WORKER_METRICS_PORT": str(metrics_port)}
                worker_url = f"http://127.0.0.1:{port}"
            container = Container(image, f"run-{target}", **settings)
            running.append(container)
            print(f"== {target} is healthy after {container.wait_until_healthy():.1f} s", flush=True)
            check_versions(container)
            print(f"   /ready  {ask(f'http://127.0.0.1:{port}/ready')}", flush=True)
            exposed = ask(f"http://127.0.0.1:{metrics_port}/metrics")
            if not exposed.startswith("200"):
                raise SystemExit(f"error: {target}: /metrics answers {exposed}")
            if target == "api":
                print(f"   /score  {score(port)}", flush=True)
    finally:
        for container in reversed(running):
            container.stop()


def score(port: int) -> str:
    """One real answer, through both processes."""
    body = (ROOT / "examples" / "score.json").read_bytes()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/score", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return f"{answer.status} {answer.read(300).decode()}"


def main() -> None:
    """Enter a mount namespace of our own, so that nothing stays mounted whatever happens, and rehearse."""
    targets = sys.argv[1:] or ["worker-cpu", "api"]
    if os.environ.get("REHEARSAL_NAMESPACE") != str(os.getppid()):
        if os.geteuid() != 0:
            raise SystemExit("error: the rehearsal mounts and enters folders: run it as root, or build with Docker")
        environment = {**os.environ, "REHEARSAL_NAMESPACE": str(os.getpid())}
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, *targets]
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    workshop = Path(tempfile.mkdtemp(prefix="metareward-rehearsal-"))
    try:
        mount("-t", "tmpfs", "tmpfs", str(workshop))
        rehearse(targets, workshop)
    finally:
        subprocess.run(["umount", "--lazy", str(workshop)], check=False)
        workshop.rmdir()
    print("rehearsed: " + ", ".join(targets))


if __name__ == "__main__":
    main()
