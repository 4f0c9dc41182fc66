"""Who follows whom: the signatures of Debian's keyring, read as follows and stripped of every name.

A developer who signs another's key has met that person: "A signed B's key" becomes "A follows B". The result
is a real social graph of a convenient size (905 people, 11,838 directed follows, a heavy tail on both sides,
three quarters mutual), and `data/follows.csv` keeps nothing of it but pairs of small integers: person 0 has
the most followers, ties are broken by a hash of the key id, so that the same keyring always gives the same
file, byte for byte.

    python -m demos.retwis.derive_graph                   # from Debian's package, by a private apt directory
    python -m demos.retwis.derive_graph --keyring FILE    # from a keyring that is already here

Only maintainers run this; the demo reads the file.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PACKAGE, VERSION = "debian-keyring", "2022.12.24"
KEYRING_IN_PACKAGE = "usr/share/keyrings/debian-keyring.gpg"
KEYRING_SHA256 = "115140a66a82e8aff366b5f322e1b2ff0aea610b88b02474e1a27dcd600aabe5"
FOLLOWS = Path(__file__).with_name("data") / "follows.csv"
STEP_SECONDS_MAX = 300

Follow = tuple[int, int]


class DeriveError(Exception):
    """The keyring could not be had, or is not the one that the committed file was derived from."""


def run(*command: str, cwd: Path | None = None) -> str:
    """Return what `command` printed; raise `DeriveError` with its last words when it failed or is not
    installed.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=STEP_SECONDS_MAX, check=False)
    except FileNotFoundError as missing:
        raise DeriveError(f"{command[0]} is not installed") from missing
    except subprocess.TimeoutExpired as late:
        raise DeriveError(f"{command[0]} took more than {STEP_SECONDS_MAX} s") from late
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-500:]
        raise DeriveError(f"{' '.join(command[:2])} … ended with {done.returncode}: {words}")
    return done.stdout.decode("utf-8", errors="replace")


def keyring_from_package(directory: Path) -> Path:
    """Download and unpack the keyring below `directory`, with apt's lists and cache kept there too (any user
    may).
    """
    state, cache = directory / "state", directory / "cache"
    for place in (state / "lists/partial", cache / "archives/partial"):
        place.mkdir(parents=True)
    private = (
        "-o",
        f"Dir::State={state}",
        "-o",
        "Dir::State::status=/var/lib/dpkg/status",
        "-o",
        f"Dir::Cache={cache}",
    )
    run("apt-get", *private, "update")
    run("apt-get", *private, "download", f"{PACKAGE}={VERSION}", cwd=directory)
    (package,) = directory.glob(f"{PACKAGE}_*.deb")
    run("dpkg-deb", "-x", str(package), str(directory / "unpacked"))
    return directory / "unpacked" / KEYRING_IN_PACKAGE


def signatures(keyring: Path) -> Iterable[tuple[str, str]]:
    """Yield (signer's key id, signed key id) as gpg lists them, repetitions and strangers' signatures
    included.
    """
    with tempfile.TemporaryDirectory() as home:
        listing = run(
            "gpg", "--batch", "--homedir", home, "--no-default-keyring", "--keyring", str(keyring.resolve()),
            "--no-auto-check-trustdb", "--with-colons", "--fast-list-mode", "--list-sigs",
        )  # fmt: skip
    signed = ""
    for line in listing.splitlines():
        fields = line.split(":")
        if fields[0] == "pub":
            signed = fields[4]
            yield signed, signed
        elif fields[0] == "sig":
            yield fields[4], signed


def follows(pairs: Iterable[tuple[str, str]]) -> tuple[int, list[Follow]]:
    """Return the number of people and the sorted (follower, followed) pairs among them, renumbered.

    A pair of a key with itself says that it is in the keyring and is no follow; a stranger's signature is
    dropped. Some people neither follow nor are followed: they count, and appear in no pair.
    """
    seen = set(pairs)
    people = {signer for signer, signed in seen if signer == signed}
    edges = {(signer, signed) for signer, signed in seen if signer in people and signer != signed}
    followers = Counter(signed for _, signed in edges)
    order = sorted(people, key=lambda key: (-followers[key], hashlib.sha256(key.encode()).digest()))
    number = {key: person for person, key in enumerate(order)}
    return len(people), sorted((number[signer], number[signed]) for signer, signed in edges)


def main(argv: list[str] | None = None) -> int:
    """Derive the graph and write it; exit 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m demos.retwis.derive_graph", description=__doc__.partition("\n")[0])
    parser.add_argument("--keyring", type=Path, help=f"{KEYRING_IN_PACKAGE} of {PACKAGE} {VERSION}")
    parser.add_argument("--out", type=Path, default=FOLLOWS, help="default: the committed file")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            keyring = options.keyring or keyring_from_package(Path(scratch))
            digest = hashlib.sha256(keyring.read_bytes()).hexdigest()
            if digest != KEYRING_SHA256:
                raise DeriveError(f"{keyring.name} has SHA-256 {digest}; {PACKAGE} {VERSION} has {KEYRING_SHA256}")
            people, graph = follows(signatures(keyring))
    except (DeriveError, OSError) as error:
        print(f"derive_graph: {error}", file=sys.stderr)
        return 1
    lines = [
        f"# {people} people; each line: follower,followed",
        *(f"{follower},{followed}" for follower, followed in graph),
    ]
    options.out.write_text("\n".join(lines) + "\n", encoding="ascii")
    print(f"{options.out}: {people} people with {len(graph):,} follows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
