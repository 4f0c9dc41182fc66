"""Imports point downward only (DESIGN §2): no core imports I/O, and `anna` never imports `cloudburst`."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CORES = (
    "anna/lattices",
    "anna/kvs",
    "anna/routing",
    "anna/buffer.pyx",
    "anna/checked.py",
    "anna/codec.pyx",
    "anna/commits.pyx",
    "anna/config.py",
    "anna/errors.py",
    "anna/membership.py",
    "anna/freshness.py",
    "anna/gate.py",
    "anna/messages.py",
    "anna/routes.py",
    "anna/scan.py",
    "anna/seeds.py",
    "anna/vectors.py",
    "anna/waiting.py",
    "anna/watching.py",
    "anna/requester.pyx",
    "anna/requests.pyx",
    "anna/shared/rings.pyx",
    "anna/storage/checkpoint.py",
    "anna/storage/gather.py",
    "anna/storage/records.py",
    "anna/storage/seal.pyx",
    "anna/wire.pyx",
    "cloudburst/attempts.py",
    "cloudburst/burst/tasks/desk.py",
    "cloudburst/burst/tasks/facts.py",
    "cloudburst/burst/tasks/queue.py",
    "cloudburst/burst/tasks/templates.py",
    "cloudburst/autoscaling.py",
    "cloudburst/burst/provider.py",
    "cloudburst/burst/terms.py",
    "cloudburst/graph.py",
    "cloudburst/lifetime.py",
    "cloudburst/logbook.py",
    "cloudburst/dagrun.py",
    "cloudburst/stages.py",
    "cloudburst/dispatch.py",
    "cloudburst/frames.py",
    "cloudburst/hedging.py",
    "cloudburst/messages.py",
    "cloudburst/neighbours.py",
    "cloudburst/scheduler.py",
    "cloudburst/segments/chunks.py",
    "cloudburst/segments/descriptors.py",
    "cloudburst/segments/layout.py",
    "cloudburst/watchdog.py",
    "cloudburst/executor/batch.py",
    "cloudburst/executor/crowd.py",
    "cloudburst/executor/joins.py",
    "cloudburst/executor/mailbox.py",
    "cloudburst/executor/queue.py",
    "cloudburst/executor/stagework.py",
    "cloudburst/cache/cache.pyx",
    "cloudburst/cache/commits.pyx",
    "cloudburst/cache/epochs.pyx",
    "cloudburst/cache/flights.pyx",
    "cloudburst/cache/kept.pyx",
    "cloudburst/cache/order.pyx",
    "cloudburst/cache/pins.pyx",
    "cloudburst/cache/versions.pyx",
    "cloudburst/consistency",
    "demos/motion/kernel",
)
IO = {
    "socket",
    "zmq",
    "asyncio",
    "uvloop",
    "time",
    "subprocess",
    "threading",
    "random",
    "selectors",
    "multiprocessing",
    "signal",
    "posix",
}


def sources(*places: str) -> list[Path]:
    found: list[Path] = []
    for place in places:
        path = ROOT / place
        found += [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".py", ".pyx", ".pxd")]
    return sorted(found)


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, those inside functions too."""
    text = path.read_text()
    if path.suffix == ".py":
        names: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        return names
    found = re.findall(r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", text, re.MULTILINE)
    return {a or b for a, b in found}


def test_every_core_that_is_named_here_exists() -> None:
    assert [place for place in CORES if not (ROOT / place).exists() and not place.endswith("consistency")] == []


@pytest.mark.parametrize("path", sources(*CORES), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_no_io(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} & IO == set()


@pytest.mark.parametrize("path", sources("anna"), ids=lambda p: str(p.relative_to(ROOT)))
def test_anna_never_imports_cloudburst(path: Path) -> None:
    assert not {name for name in imported(path) if name.split(".")[0] in ("cloudburst", "demos", "bench")}


@pytest.mark.parametrize(
    "path", sources("anna/kvs", "anna/routing", "anna/lattices"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_rules_and_algebra_import_no_driver(path: Path) -> None:
    drivers = {
        "anna.server",
        "anna.client",
        "anna.aio",
        "anna.stream",
        "anna.local",
        "anna.supervisor",
        "anna.entry",
        "anna.cli",
        "anna.commands",
    }
    assert imported(path) & drivers == set()


@pytest.mark.parametrize("path", sources("cloudburst/judge"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_judge_imports_nothing_of_what_it_judges(path: Path) -> None:
    """A wrong rule of the protocol cannot hide in its checker."""
    ours = {name for name in imported(path) if name.split(".")[0] in ("anna", "cloudburst", "demos", "bench")}
    assert [name for name in sorted(ours) if not f"{name}.".startswith("cloudburst.judge.")] == []


DISTRIBUTIONS = {"opentelemetry": "opentelemetry-sdk", "prometheus_client": "prometheus-client", "zmq": "pyzmq"}
FOR_TESTS = {ROOT / "anna/lattices/laws.py": {"hypothesis"}}
"""What only tests of laws import, of which users make their own."""


def test_what_is_imported_is_declared_as_a_dependency_of_the_distribution() -> None:
    """The tests' own packages hide what is missing: a built file on another machine lacks it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in ("dev", "peers")]
    declared = {re.split(r"[^\w-]", name)[0] for names in (project["dependencies"], *extras) for name in names}
    known = {"anna", "cloudburst", "demos", "libc", "cpython", "libcpp", "cython"} | set(sys.stdlib_module_names)
    lacking = {
        (str(path.relative_to(ROOT)), name)
        for path in sources("anna", "cloudburst")
        for name in {whole.split(".")[0] for whole in imported(path)} - known - FOR_TESTS.get(path, set())
        if DISTRIBUTIONS.get(name, name) not in declared
    }
    assert lacking == set()
