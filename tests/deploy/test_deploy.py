"""The files of deploy/: judged by the tools of those who read them, and every command in them run for real.

A command is run as it stands there, with the directories of an installation put into one of the test: what systemd, a
container or a pod would start, starts here, and its probe says that it is ready.
"""

from __future__ import annotations

import configparser
import functools
import hashlib
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
UNITS = {unit.stem: unit for unit in sorted((DEPLOY / "systemd").glob("*.service"))}
EXPOSURE_MAX = {"anna": 20, "cloudburst": 40}
"""What systemd says of how much a service could do beyond its work, times ten: 100 is everything."""
READY_S = 60.0
PROBES = {"anna": ["{bin}/anna", "status", "--at", "unix:{place}/run/anna/w0.sock"],
          "cloudburst": ["{bin}/cb", "status", "--dir", "{place}/run/cloudburst/node"]}  # fmt: skip

yaml = pytest.importorskip("yaml", reason="deploy/ is not judged: pip install '.[deploy-lint]'")


def needs(program: str) -> str:
    """Return where a program is; skip loudly without it."""
    found = shutil.which(program, path=f"{BIN}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not here: see .ci/run for how CI gets it")
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="deploy-") as name:
        yield Path(name)


def moved(words: Sequence[str], place: Path) -> list[str]:
    """Return a command with the directories of an installation in `place`."""
    changed = []
    for word in words:
        word = re.sub(r"(?<![\w/])(/secret|/keys|/run|/var|/etc)(?=/)", rf"{place}\1", word)
        changed.append(word.replace("/opt/cloudburst/bin", str(BIN)))
    if changed[0] == "join":
        changed[0] = str(DEPLOY / "container" / "join.sh")
    return changed


def environment(place: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANNA_", "CLOUDBURST_"))}
    own = {"PATH": f"{BIN}:{kept['PATH']}", "PYTHONPATH": str(ROOT), "ANNA_DIR": str(place / "run" / "anna")}
    return kept | own | {"CLOUDBURST_DIR": str(place / "run" / "cloudburst" / "node")} | variables


@contextmanager
def started(command: list[str], place: Path, said: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended as its manager would, and then has to have ended well."""
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place, env=environment(place, **variables), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(READY_S) in (0, -signal.SIGTERM, 130), said.read_text()
        finally:
            process.kill()
            process.wait()


def ready(process: subprocess.Popen[bytes], probe: list[str], place: Path, said: Path, **variables: str) -> str:
    """Wait until a probe says so; return what it prints."""
    end_s = time.monotonic() + READY_S
    while True:
        asked = subprocess.run(probe, env=environment(place, **variables), cwd=place, capture_output=True, text=True)
        if asked.returncode == 0:
            return asked.stdout
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < end_s, asked.stderr + said.read_text()


# -- systemd


def service_of(name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS[name])
    return dict(parser["Service"])


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit_and_finds_little_exposed(place: Path, name: str) -> None:
    analyze = needs("systemd-analyze")
    unit = place / f"{name}.service"
    unit.write_text(UNITS[name].read_text().replace("/opt/cloudburst/bin", str(BIN)))
    verified = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    threshold = f"--threshold={EXPOSURE_MAX[name]}"
    judged = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", threshold, str(unit)], capture_output=True, text=True
    )
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("name", UNITS)
def test_what_the_unit_starts_runs_and_ends_when_it_is_told_to(place: Path, name: str) -> None:
    words = service_of(name)["ExecStart"].replace("$ANNA_OPTIONS", "--workers 1 --listen tcp://127.0.0.1:0")
    words = words.replace("$CB_OPTIONS", "--workers 1 --executors 1 --listen tcp://127.0.0.1:0")
    for directory in ("run/anna", "run/cloudburst", "var/lib/anna"):  # what systemd makes before it starts it
        (place / directory).mkdir(parents=True, mode=0o700)
    command, said = moved(shlex.split(words), place), place / "said"
    probe = [word.format(bin=BIN, place=place) for word in PROBES[name]]
    with started(command, place, said) as process:
        assert ready(process, probe, place, said)


def test_the_user_of_the_units_is_made_as_it_is_said(place: Path) -> None:
    sysusers = needs("systemd-sysusers")
    (place / "etc").mkdir()
    command = [sysusers, f"--root={place}", str(DEPLOY / "systemd" / "cloudburst-sysusers.conf")]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    users = [line.split(":") for line in (place / "etc" / "passwd").read_text().splitlines()]
    assert [user[0] for user in users] == ["cloudburst"]
    assert all(service_of(name)["User"] == "cloudburst" for name in UNITS)


# -- cloud-init


def user_data(url: str, digest: str) -> str:
    command = [sys.executable, str(DEPLOY / "cloud-init" / "make.py"), url, digest]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_cloud_init_understands_the_user_data(place: Path) -> None:
    (place / "user-data").write_text(user_data("https://example.org/wc?a=1&b='2'", 64 * "0"))
    command = [needs("cloud-init"), "schema", "--config-file", str(place / "user-data")]
    judged = subprocess.run(command, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_user_data_is_small_holds_the_unit_as_it_is_and_no_secret() -> None:
    text = user_data("https://example.org/wc", 64 * "0")
    read = yaml.safe_load(text)
    files = {one["path"]: one["content"] for one in read["write_files"]}
    assert files["/etc/systemd/system/cloudburst.service"].splitlines() == UNITS["cloudburst"].read_text().splitlines()
    assert read["runcmd"][-1] == ["systemctl", "enable", "--now", "cloudburst.service"]
    assert service_of("cloudburst")["ExecStart"].split()[0] == read["runcmd"][0][-1]
    assert len(text) < 16 * 1024
    assert "PRIVATE KEY" not in text


@contextmanager
def served(directory: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *given: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=directory)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "meant", "code", "said"),
    [
        ("app", b"#!/bin/sh\necho ready\n", 0, ""),
        ("app", b"something else", 3, "and not"),
        ("absent", b"", 1, "404"),
    ],
)
def test_the_machine_fetches_one_file_and_uses_only_the_one_that_was_meant(
    place: Path, name: str, meant: bytes, code: int, said: str
) -> None:
    (place / "web").mkdir()
    (place / "web" / "app").write_bytes(b"#!/bin/sh\necho ready\n")
    with served(place / "web") as address:
        read = yaml.safe_load(user_data(f"{address}/{name}?signed=MARKER", hashlib.sha256(meant).hexdigest()))
        fetch = place / "fetch"
        fetch.write_text(next(one["content"] for one in read["write_files"] if "fetch" in one["path"]))
        _, _, url, digest, _ = read["runcmd"][0]
        program = place / "opt" / "bin" / "cb"
        command = [sys.executable, str(fetch), url, digest, str(program)]
        ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"FETCH_TRY_S": "0"})
    assert ran.returncode == code, ran.stderr
    assert said in ran.stderr
    assert "MARKER" not in ran.stderr  # a signed address is a secret
    assert program.exists() == (code == 0)
    if code == 0:
        assert subprocess.run([program], capture_output=True, check=True).stdout == b"ready\n"


# -- the container


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "container" / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def test_hadolint_has_nothing_to_say_of_the_container_file() -> None:
    judged = subprocess.run(
        [needs("hadolint"), str(DEPLOY / "container" / "Containerfile")], capture_output=True, text=True
    )
    assert (judged.returncode, judged.stdout) == (0, "")


def test_what_the_container_file_copies_is_in_the_repository_and_it_runs_as_no_root() -> None:
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    assert copied
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    assert [rest for word, rest in instructions() if word == "USER"] == ["10001"]
    assert os.access(DEPLOY / "container" / "join.sh", os.X_OK)


def test_the_command_of_the_container_runs_and_its_health_check_says_so(place: Path) -> None:
    said = place / "said"
    words = {word: yaml.safe_load(rest.partition("CMD")[2] or rest) for word, rest in instructions()
             if word in ("CMD", "HEALTHCHECK")}  # fmt: skip
    for directory in ("var/lib", "run"):
        (place / directory).mkdir(parents=True)
    with started([*moved(words["CMD"], place), "--workers", "1"], place, said) as process:
        assert ready(process, moved(words["HEALTHCHECK"], place), place, said)


# -- Kubernetes


ONE_CLUSTER: dict[str, Callable[[Any], bool]] = {
    "anna": lambda status: len(status["nodes"]) == 2,
    "cloudburst": lambda status: len(status["nodes"]) == 1,  # beside itself
}
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def resources(manifest: Path) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(manifest.read_text())}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_kubernetes_understands_the_manifests(manifest: Path) -> None:
    judge = pytest.importorskip("kubernetes_validate", reason="manifests are not judged: pip install '.[deploy-lint]'")
    for one in yaml.safe_load_all(manifest.read_text()):
        judge.validate(one, judge.latest_version(), strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_the_parts_of_a_manifest_fit_together(manifest: Path) -> None:
    found = resources(manifest)
    service, node_set = found["Service"], found["StatefulSet"]
    pod = node_set["spec"]["template"]["spec"]
    (node,) = pod["containers"]
    labels = node_set["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == node_set["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert (node_set["spec"]["serviceName"], service["spec"]["clusterIP"]) == (service["metadata"]["name"], "None")
    variables = {one["name"]: one.get("value") for one in node["env"]}
    assert variables["SERVICE"] == service["metadata"]["name"]
    assert int(node["command"][1]) == node["ports"][0]["containerPort"] == service["spec"]["ports"][0]["port"]
    volumes = {one["name"] for one in (*pod["volumes"], *({"name": claim["metadata"]["name"]} for claim in
               node_set["spec"].get("volumeClaimTemplates", ())))}  # fmt: skip
    mounted = {one["name"] for container in (node, *pod["initContainers"]) for one in container["volumeMounts"]}
    assert mounted == volumes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_pods_begin_a_cluster_and_join_it_under_keys_and_their_probes_say_so(place: Path, manifest: Path) -> None:
    """Two pods, whose addresses are on the loopback network; the service's name leads to the first one."""
    pod = resources(manifest)["StatefulSet"]["spec"]["template"]["spec"]
    (node,), (copies,) = pod["containers"], pod["initContainers"]
    env = environment(place)
    subprocess.run([BIN / "anna", "keys", "new", place / "own"], check=True, env=env, capture_output=True)
    issue = [BIN / "anna", "keys", "issue", place / "own", place / "secret", "--name", "node", "--right", "admin"]
    subprocess.run(issue, check=True, env=env, capture_output=True)
    for key in (place / "secret").iterdir():
        key.chmod(0o440)  # as a mounted secret is with `fsGroup`
    port = str(free_port())
    with ExitStack() as stack:
        for number in (1, 2):
            own = place / str(number)
            for directory in ("run/cloudburst", "var/lib", "keys"):
                (own / directory).mkdir(parents=True)
            (own / "secret").symlink_to(place / "secret")
            subprocess.run(moved(copies["command"], own), check=True, env=env)
            assert {key.stat().st_mode & 0o077 for key in (own / "keys").iterdir()} == {0}
            command = [port if word == node["command"][1] else word for word in moved(node["command"], own)]
            variables = {"POD_IP": f"127.0.0.{number}", "SERVICE": "127.0.0.1", "ANNA_KEYS": str(own / "keys")}
            process = stack.enter_context(started(command, own, own / "said", **variables))
            probes = {tuple(node[f"{kind}Probe"]["exec"]["command"]) for kind in ("startup", "readiness", "liveness")}
            for probe in probes:
                ready(process, moved(probe, own), own, own / "said", **variables)
        status = [*moved(node["readinessProbe"]["exec"]["command"], own), "--json"]
        end_s, said = time.monotonic() + READY_S, own / "said"
        while not ONE_CLUSTER[manifest.stem](json.loads(ready(process, status, own, said, **variables))):
            assert time.monotonic() < end_s, said.read_text()
