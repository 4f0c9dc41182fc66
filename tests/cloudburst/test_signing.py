"""Records of functions are signed where there are keys; what nobody signed who may is refused before it is loaded."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import anna
import cloudburst as cb
from anna import authority
from anna.gate import Right
from anna.keys import Keys, keep
from cloudburst import local
from cloudburst.membership import Membership
from cloudburst.newest import Newest
from cloudburst.pickling import code_tag
from cloudburst.records import SIGNED, FunctionRecord, FunctionStore
from cloudburst.shape import Shape
from cloudburst.signing import Signatures, unwrap
from tests.anna.local.processes import eventually

DAY = timedelta(days=1)
ISSUER = authority.Issuer.fresh()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory for nodes and keys."""
    made = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def keyed(place: Path) -> Iterator[cb.Client]:
    """A client of a node with keys and a store of its own."""
    shape = Shape.of(1, own_store=True, workers=1)
    lease = local.ensure_shape(place / "node", shape, keys=ISSUER.issue("host", Right.ADMIN, DAY))
    made = cb.Client(lambda: Membership(lease))
    yield made
    made.close()


def kvs_of(client: cb.Client) -> Any:
    """Return a client of the store that writes what it likes: any process of this user's can be one."""
    return client._joined().store(system=True)


def signatures(place: Path, name: str, right: Right, issuer: authority.Issuer = ISSUER) -> Signatures:
    """Return those of somebody with a right in a cluster."""
    keep(place / name, issuer.issue(name, right, DAY))
    return Signatures(place / name)


def put_in_its_place(kvs: Any, key: str, data: bytes) -> None:
    """Put what nobody who may has signed in the place of a record, so that it would win over any other."""
    kvs.delete(f"\0cb/record/{key}")
    kvs.put(f"\0cb/record/{key}", anna.Priority((-(10**9), 0), data))


class Trap:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def trap(store: FunctionStore, name: str, mark: Path) -> FunctionRecord:
    """Put a body into the store that would leave a mark; return its record."""
    return FunctionRecord(name, 1, store.put_body(cloudpickle.dumps(Trap(mark))), code_tag(), 1)


def test_what_is_registered_is_signed_by_who_may_and_runs(keyed: cb.Client, place: Path) -> None:
    keyed.register(lambda x: x + 1, name="plus")
    assert keyed.call("plus", 1) == 2
    for key in ("plus", "plus@1"):
        data = bytes(kvs_of(keyed).get(f"\0cb/record/{key}".encode()))
        assert data[:1] == SIGNED
        record, signature, certificates = unwrap(data)
        signatures(place, "reader", Right.DATA).check(record, signature, certificates)
        assert b"PRIVATE" not in data


def unsigned(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    return record.pack()


def of_another_cluster(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    return signatures(place, "stranger", Right.ADMIN, authority.Issuer.fresh()).sign(record.pack())


def of_the_right_data(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    return signatures(place, "writer", Right.DATA).sign(record.pack())


def changed_after(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    own = signatures(place, "owner", Right.CODE)
    _, signature, certificates = unwrap(own.sign(replace(record, body="0" * 64).pack()))
    return cb_form(record.pack(), signature, certificates)


def of_another_name(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    return signatures(place, "owner", Right.CODE).sign(replace(record, name="harmless").pack())


def of_no_certificate(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    return cb_form(record.pack(), b"signature", b"nobody")


def in_another_form(store: FunctionStore, place: Path, record: FunctionRecord) -> bytes:
    return SIGNED + b"\x09\xc0\xc0\xc0"


def cb_form(*parts: bytes) -> bytes:
    import msgpack

    return bytes(msgpack.packb([1, *parts]))


FORGERIES: tuple[tuple[Callable[[FunctionStore, Path, FunctionRecord], bytes], str], ...] = (
    (unsigned, "it is not signed"),
    (of_another_cluster, "signed by stranger, whose keys are not of an authority that is believed here"),
    (of_the_right_data, "signed by writer, whose right is data and not code"),
    (changed_after, "it is not what was signed"),
    (of_another_name, "it is that of 'harmless', version 1"),
    (of_no_certificate, "its signer shows no certificate"),
    (in_another_form, "it is in no form that this version knows"),
)


@pytest.mark.parametrize(("forgery", "why"), FORGERIES, ids=lambda one: getattr(one, "__name__", ""))
def test_forged_record_is_refused_and_counted_and_its_body_is_not_loaded(
    keyed: cb.Client, place: Path, forgery: Callable[..., bytes], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = forgery.__name__
    mark = place / f"mark-{name}"
    kvs = kvs_of(keyed)
    store = FunctionStore(kvs)
    record = trap(store, name, mark)
    keyed.register(lambda: "right", name=name)
    assert keyed.call(name) == "right"
    before = keyed.status()["refused_records"]
    put_in_its_place(kvs, name, forgery(store, place, record))
    keyed.register(lambda: None, name=f"another than {name}")  # the executor looks for news of all that it has loaded
    refusal = f"'{name}' is refused: .*{why}.*; register it again"
    with pytest.raises(cb.NotSigned, match=refusal):
        keyed.call(name)
    with monkeypatch.context() as careless:
        careless.setattr(FunctionStore, "_believed", lambda *_: record)  # a program that does not look
        with pytest.raises(cb.NotSigned, match=refusal):
            keyed.call(name)
    eventually(lambda: keyed.status()["refused_records"] > before, "the executor's refusal is counted")
    assert name not in {one["name"] for one in keyed.functions()}, "nor is it listed"
    assert not mark.exists()
    keyed.register(lambda: "again", name=name)
    assert (keyed.call(name), mark.exists()) == ("again", False)


def stored(client: cb.Client, key: str) -> bytes:
    return bytes(kvs_of(client).get(f"\0cb/record/{key}"))


def look_again(client: cb.Client) -> None:
    """Have everybody look for news of all functions."""
    client.register(lambda: None, name=f"another {os.urandom(4).hex()}")


def test_older_record_that_was_signed_once_does_not_win_in_the_store(keyed: cb.Client) -> None:
    keyed.register(lambda: "old", name="rolled")
    old = stored(keyed, "rolled")
    keyed.register(lambda: "new", name="rolled")
    kvs = kvs_of(keyed)
    with pytest.raises(anna.LatticeTypeMismatch):
        kvs.put("\0cb/record/rolled", old)
    kvs.put("\0cb/record/rolled", anna.Priority((-1, 0), old))
    look_again(keyed)
    assert keyed.call("rolled") == "new"
    keyed.delete("rolled")
    kvs.put("\0cb/record/rolled", anna.Priority((-1, 0), old))
    look_again(keyed)
    with pytest.raises(cb.FunctionNotFound):
        keyed.call("rolled")
    keyed.register(lambda: "third", name="rolled")
    assert keyed.call("rolled") == "third"


def test_older_record_in_the_place_of_a_removed_one_is_refused_by_who_has_seen_the_newer(keyed: cb.Client) -> None:
    keyed.register(lambda: "old", name="swapped")
    old = stored(keyed, "swapped")
    assert keyed.call("swapped") == "old"
    keyed.register(lambda: "new", name="swapped")
    assert keyed.call("swapped") == "new"
    put_in_its_place(kvs_of(keyed), "swapped", old)
    kvs_of(keyed).delete("\0cb/record/swapped@2")
    look_again(keyed)
    refusal = "it is version 1.0, and version 2.0 has been here: somebody has put an older one back"
    with pytest.raises(cb.NotSigned, match=refusal):
        keyed.call("swapped")
    before = keyed.status()["refused_records"]
    with pytest.MonkeyPatch.context() as careless:  # a program that has not seen the newer one calls
        careless.setattr(Signatures, "see", lambda *_: None)
        with pytest.raises(cb.NotSigned, match=refusal):
            keyed.call("swapped")
    eventually(lambda: keyed.status()["refused_records"] > before, "the executor's refusal is counted")
    keyed.register(lambda: "again", name="swapped")
    assert keyed.call("swapped") == "again"
    assert [one["version"] for one in keyed.functions() if one["name"] == "swapped"] == [3], "no number is used twice"


def test_who_has_seen_neither_takes_the_newest_that_is_there(keyed: cb.Client, place: Path) -> None:
    keyed.register(lambda: "old", name="fresh")
    old = stored(keyed, "fresh")
    keyed.register(lambda: "new", name="fresh")
    put_in_its_place(kvs_of(keyed), "fresh", old)
    newcomer = FunctionStore(kvs_of(keyed), signatures(place, "newcomer", Right.DATA))
    found = newcomer.find("fresh")
    assert found is not None
    assert found.version == 2
    put_in_its_place(kvs_of(keyed), "fresh@2", b"nonsense")
    assert FunctionStore(kvs_of(keyed), signatures(place, "newcomer", Right.DATA)).find("fresh", 1) is not None


def test_reason_that_a_function_is_refused_for_is_not_taken_back_by_an_older_record(
    keyed: cb.Client, place: Path
) -> None:
    keyed.register(lambda: "poor", name="poor")
    harmless = stored(keyed, "poor")
    store = FunctionStore(kvs_of(keyed), signatures(place, "registrar", Right.ADMIN))
    found = store.find("poor")
    assert found is not None
    store.put(found.amended(poison="it kills"))  # as nodes do
    kvs_of(keyed).put("\0cb/record/poor", anna.Priority((-1, 0), harmless))
    look_again(keyed)
    with pytest.raises(cb.ExecutorLost, match="it kills"):
        keyed.call("poor")


def test_record_that_was_written_without_keys_gives_way_to_a_signed_one(keyed: cb.Client) -> None:
    kvs_of(keyed).put("\0cb/record/plain", FunctionRecord("plain", 1, "0" * 64, code_tag(), 1).pack())
    keyed.register(lambda: "signed", name="plain")
    assert keyed.call("plain") == "signed"


def test_newest_of_each_only_grows_and_is_bounded() -> None:
    newest = Newest(most=3)
    for order in ((1, 0), (1, 1), (3, 0), (3, 0)):
        newest.see("f", order)
        assert newest.of("f") == order
    for older in ((1, 9), (2, 0), (0, 0)):
        with pytest.raises(cb.NotSigned, match=r"and version 3\.0 has been here"):
            newest.see("f", older)
        assert newest.of("f") == (3, 0)
    for name in "ghij":
        newest.see(name, (1, 0))
    assert [newest.of(name) for name in "fghij"] == [(0, 0)] * 2 + [(1, 0)] * 3


def test_signatures_end_with_the_authority_and_not_with_keys(place: Path) -> None:
    home = place / "authority"
    authority.found(home)
    before, now = Signatures(home), Signatures(place / "host")
    old = unwrap(before.sign(b"record"))
    authority.rotate(home)
    authority.issue(home, place / "host", "host", Right.CODE)
    new = unwrap(now.sign(b"record"))
    for one in (old, new):
        now.check(*one)
    authority.retire(home)
    authority.issue(home, place / "host", "host", Right.CODE)
    with pytest.raises(cb.NotSigned, match="not of an authority that is believed"):
        now.check(*old)
    now.check(*unwrap(Signatures(place / "host").sign(b"record")))


def test_keys_that_are_replaced_while_they_are_read_are_never_mixed(place: Path) -> None:
    """Files are replaced one after the other; who reads in between must not take a key with another's certificate."""
    several = [ISSUER.issue("host", Right.CODE, DAY) for _ in range(2)]
    keep(place / "renewed", several[0])
    over = threading.Event()

    def replace_them() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            keep(place / "renewed", several[number % 2])

    replacing = threading.Thread(target=replace_them)
    replacing.start()
    try:
        for _ in range(100):
            Keys(place / "renewed")
            own = Signatures(place / "renewed")
            own.check(*unwrap(own.sign(b"record")))
    finally:
        over.set()
        replacing.join()


def test_host_that_has_not_heard_of_the_next_authority_believes_whom_its_own_vouches_for(place: Path) -> None:
    home = place / "vouching"
    authority.found(home)
    authority.issue(home, place / "behind", "behind", Right.CODE)
    authority.rotate(home)
    authority.issue(home, place / "ahead", "ahead", Right.CODE)
    Signatures(place / "behind").check(*unwrap(Signatures(place / "ahead").sign(b"record")))


def test_without_keys_nothing_is_signed_and_what_is_signed_is_read(keyed: cb.Client) -> None:
    keyed.register(lambda: 1, name="kept")
    store = FunctionStore(kvs_of(keyed))
    found = store.find("kept")
    assert found is not None
    store.amend(replace(found, version=9))
    assert bytes(kvs_of(keyed).get(b"\0cb/record/kept@9"))[:1] != SIGNED
    assert store.find("kept", 9) == replace(found, version=9)
