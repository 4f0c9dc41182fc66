"""Tokens between stages where there are keys: signed with the run's, and refused from whoever has not the right."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from anna.authority import Issuer
from anna.gate import Right
from anna.keys import keep
from cloudburst import local
from cloudburst.burst.tasks.tokens import MARK, Certified, Shared, Token, read, seal_of
from cloudburst.client import Client
from cloudburst.errors import RequestError
from cloudburst.membership import Membership
from cloudburst.secret import Secret
from cloudburst.shape import Shape
from cloudburst.signing import Signatures
from tests.cloudburst.burst.tasks.mapped import environment, files
from tests.cloudburst.test_lifecycle import all_gone

DAY = timedelta(days=1)
ISSUER = Issuer.fresh()


def keyed(directory: Path) -> Path:
    """Return the directory of a node under keys, as far as tokens are concerned."""
    directory.mkdir(mode=0o700)
    lesser = {name: text for name, text in ISSUER.issue("host", Right.ADMIN, DAY).items() if name.startswith("code/")}
    keep(directory, lesser)
    Secret.fresh().keep(directory)
    return directory


def of(place: Path, right: Right, lasts: timedelta = DAY, issuer: Issuer = ISSUER) -> Certified:
    keep(place, issuer.issue("somebody", right, lasts))
    return Certified(Signatures(place))


def token(directory: Path) -> Token:
    return Token("\0cb/queue/some", "owner", str(directory), time.time() + 600)


def test_token_is_signed_with_the_runs_keys_and_known_by_its_authority(tmp_path: Path) -> None:
    made = token(keyed(tmp_path / "node"))
    line = made.signed(seal_of(made.directory))
    assert read(line, time.time()) == made
    assert read(made.signed(of(tmp_path / "another", Right.CODE)), time.time()) == made, "whoever has the right may"
    secret = (tmp_path / "node" / "secret").read_text().strip().encode()
    private = (tmp_path / "node" / "code" / "key.pem").read_bytes().splitlines()[1]
    shown = b"".join(base64.urlsafe_b64decode(part + b"===") for part in line.removeprefix(MARK).strip().split(b"."))
    for kept in (secret, private, b"PRIVATE KEY"):
        assert kept not in shown


Forge = Callable[[Path, Token], bytes]

FORGERIES: tuple[tuple[str, Forge, str], ...] = (
    ("data", lambda place, made: made.signed(of(place, Right.DATA)), "whose right is data and not code"),
    (
        "another cluster",
        lambda place, made: made.signed(of(place, Right.ADMIN, DAY, Issuer.fresh())),
        "not of an authority that is believed",
    ),
    ("ended", lambda place, made: made.signed(of(place, Right.CODE, timedelta(seconds=-9))), "keys have ended"),
    ("the shared secret", lambda _, made: made.signed(shared(made)), "not signed with keys of this cluster"),
    ("nothing", lambda _, made: made.signed(Shared(b"")).rpartition(b".")[0] + b".\n", "not signed with keys of this"),
    ("expired", lambda place, made: of_yesterday(made).signed(of(place, Right.CODE)), r"has expired [\d,]+ s ago"),
    ("other results", lambda place, made: rescoped(made, of(place, Right.CODE)), "not what was signed"),
    ("another use", lambda place, made: made.signed(of(place, Right.CODE)).replace(b".", b".A", 1), "refused|signed"),
)


def of_yesterday(made: Token) -> Token:
    return replace(made, until_s=time.time() - DAY.total_seconds())


def shared(made: Token) -> Shared:
    secret = Secret.of(made.directory)
    assert secret is not None
    return Shared(secret.lane_key)


def rescoped(made: Token, seal: Certified) -> bytes:
    """Return a token to other results with the signature of one to these."""
    proof = made.signed(seal).partition(b".")[2]
    return replace(made, prefix="\0cb/queue/other").signed(seal).partition(b".")[0] + b"." + proof


@pytest.mark.parametrize(("what", "forge", "why"), FORGERIES, ids=[what for what, _, _ in FORGERIES])
def test_token_of_who_may_not_is_refused(tmp_path: Path, what: str, forge: Forge, why: str) -> None:
    made = token(keyed(tmp_path / "node"))
    with pytest.raises(RequestError, match=why):
        read(forge(tmp_path / "somebody", made), time.time())


def test_stages_under_keys_pass_on_what_they_should(directory: Path, tmp_path: Path) -> None:
    files(tmp_path, 3)
    keys = ISSUER.issue("host", Right.ADMIN, DAY)
    lease = local.ensure_shape(directory / "node", Shape.of(1, own_store=True, workers=1), keys=keys)
    with Client(lambda: Membership(lease)):
        script = "set -o pipefail; $CB map --emit token 'cat {}' *.txt | tee token | $CB map 'tr a-z A-Z < {}' > out"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=60, stdin=subprocess.DEVNULL,
            env=environment(CLOUDBURST_DIR=str(directory / "node")),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert sorted((tmp_path / "out").read_text().splitlines()) == [f"LINE {number}" for number in range(3)]
        line = (tmp_path / "token").read_bytes()
        assert read(line, time.time()).directory == str(directory / "node")
    all_gone(directory)
