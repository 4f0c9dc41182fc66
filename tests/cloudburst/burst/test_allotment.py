"""Which instance is which machine: by the listing and what hosts say, in any order, with too many and too few."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cloudburst.burst.ec2 import userdata
from cloudburst.burst.ec2.allotment import Allotment, Instance
from cloudburst.burst.ec2.profile import Profile, read
from cloudburst.errors import RequestError

NODE = {"address": "tcp://10.0.0.1:1", "pid": 1, "executors": 2}


def running(*ids: str) -> list[Instance]:
    return [Instance(id, "running", place="small zone-1") for id in ids]


def ended(id: str) -> Instance:
    return Instance(id, "terminated", why="no more room")


def came(at: float, **more: Any) -> dict[str, Any]:
    return {"at": at, "boot": 2.0, "fetch": 1.0, **more}


@pytest.fixture
def two() -> Allotment:
    made = Allotment("run", silent_s=10.0)
    made.ask(["host-0", "host-1"], "small", 0.0)
    return made


def phases(allotment: Allotment) -> list[str]:
    allotment.check()
    return [one.phase for one in allotment.machines]


def test_places_are_taken_by_those_that_come_first_and_the_late_are_given_back(two: Allotment) -> None:
    assert two.take(running("a", "b", "c"), {}, 1.0).surplus == []
    assert phases(two) == ["pending", "pending"]
    steps = two.take(running("a", "b", "c"), {"c": came(5.0)}, 5.0)
    assert [one.phase for one in two.machines] == ["fetch", "pending"]
    assert two.machines[0].place == "c small zone-1"
    assert two.machines[0].reached == {"asked": 0.0, "pending": 5.0, "boot": 3.0, "fetch": 4.0}
    assert (steps.letters, steps.surplus) == ([("c", "host-0", "")], []), "the first begins the cluster"
    assert two.take(running("a", "b", "c"), {"b": came(6.0)}, 6.0).letters == [], "the second waits for its address"
    steps = two.take(running("a", "b", "c"), {"c": came(7.0, node=NODE, met=0)}, 7.0)
    assert steps.letters == [("b", "host-1", NODE["address"])]
    assert steps.surplus == []
    assert two.take(running("a", "b", "c"), {}, 7.0).letters == [], "a letter is sent once"
    news = {"c": came(8.0, node=NODE, met=2), "b": came(8.0, node=NODE, met=2)}
    assert two.take(running("a", "b", "c"), news, 8.0).surplus == ["a"]
    assert phases(two) == ["agent", "agent"]
    assert two.settled


def test_listing_is_awaited_until_all_have_come_and_while_some_go(two: Allotment) -> None:
    assert two.awaits_machines, "none is listed"
    two.take(running("a", "b"), {"a": came(5.0)}, 5.0)
    assert two.awaits_machines, "one has not come"
    two.take([], {"b": came(6.0)}, 6.0)
    assert not two.awaits_machines
    two.end(["host-0"], "drain")
    assert two.awaits_machines
    two.forget(["host-0"])
    two.take([ended("a")], {}, 8.0)
    assert not two.awaits_machines


def test_what_is_listed_counts_whatever_was_answered(two: Allotment) -> None:
    """A request was done twice: four are there for two places."""
    two.take([], {}, 1.0)
    assert phases(two) == ["asked", "asked"]
    news = {id: came(2.0, node=NODE, met=2) for id in "ab"}
    assert two.take(running("a", "b", "c", "d"), news, 2.0).surplus == ["c", "d"]
    assert two.take(running("a", "b", "c", "d", "e"), news, 2.0).surplus == ["c", "d", "e"], "later ones, too"


def test_one_that_fails_before_it_is_ready_is_replaced_by_a_spare_one(two: Allotment) -> None:
    two.take(running("a", "b", "c"), {"a": came(1.0), "b": came(1.0)}, 1.0)
    steps = two.take([*running("b", "c"), ended("a")], {"b": came(2.0)}, 2.0)
    assert steps.letters == [("b", "host-1", "")], "another begins the cluster"
    assert [one.place[0] for one in two.machines] == ["c", "b"]
    assert phases(two) == ["pending", "fetch"]
    two.take([*running("b"), ended("c")], {}, 4.0)
    assert [one.fault for one in two.machines] == ["c is terminated: no more room", ""]


def test_one_that_was_ready_and_is_gone_is_said_and_not_replaced_by_itself(two: Allotment) -> None:
    ready = {id: came(1.0, node=NODE, met=2) for id in "ab"}
    two.take(running("a", "b"), ready, 1.0)
    two.take([*running("a", "c"), ended("b")], {}, 2.0)
    assert [one.fault for one in two.machines] == ["", "b is terminated: no more room"]
    two.take(running("a"), {"a": came(3.0, node=NODE, met=0)}, 3.0)
    two.forget(["host-1"])
    two.ask(["host-2"], "small", 3.0)
    steps = two.take(running("a", "d"), {"d": came(4.0)}, 4.0)
    assert steps.letters == [("d", "host-2", NODE["address"])]


def test_one_that_falls_silent_has_failed(two: Allotment) -> None:
    two.take(running("a", "b"), {id: came(1.0, node=NODE, met=2) for id in "ab"}, 1.0)
    two.take(running("a", "b"), {"a": came(12.0, node=NODE, met=2)}, 12.0)
    assert [one.fault for one in two.machines] == ["", "b has said nothing for 10 s"]


def test_one_that_is_to_end_is_told_so_and_has_ended_when_it_says_so(two: Allotment) -> None:
    two.take(running("a", "b"), {id: came(1.0, node=NODE, met=2) for id in "ab"}, 1.0)
    two.end(["host-1"], "leave")
    assert two.entries == {"a": "", "b": "leave"}
    assert not two.has_ended("host-1")
    two.take(running("a", "b"), {"b": came(2.0, node=NODE, met=2, ended=True, left=1)}, 2.0)
    assert (two.has_ended("host-1"), two.left("host-1"), two.machines[1].fault) == (True, 1, "")


def test_machine_without_a_letter_has_nothing_to_end(two: Allotment) -> None:
    two.take(running("a"), {}, 1.0)
    two.end(["host-0", "host-1"], "drain")
    assert two.has_ended("host-0")
    assert two.has_ended("host-1")


def test_script_is_small_and_a_shell_takes_it(tmp_path: Path) -> None:
    url = "https://cloudburst-123456789012-us-east-1.s3.amazonaws.com/runs/abcdefgh/record?" + "x" * 400
    script = userdata.script(url, "0" * 64, "python3", 90.0)
    assert len(script.encode()) <= 2048
    assert script.splitlines()[1] == "shutdown -h +2"
    assert script.splitlines()[-1] == "shutdown -h now"
    (tmp_path / "script").write_text(script)
    subprocess.run(["sh", "-n", str(tmp_path / "script")], check=True)
    compile(script.split("<<'END'\n")[1].split("\nEND\n")[0], "script", "exec")


def test_profile_is_a_query_or_a_file_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    assert read("") == Profile()
    assert read("?type=c7i.xlarge&spot=1&price=0.2") == Profile(type="c7i.xlarge", spot=True, price=0.2)
    file = tmp_path / "profile.toml"
    file.write_text('region = "eu-west-1"\nspare = 0\n')
    assert read(str(file)) == Profile(region="eu-west-1", spare=0)
    assert (Profile().spares(10), Profile().spares(11), Profile(spare=0).spares(5)) == (1, 2, 0)
    for wrong, why in (
        ("?kind=1", "kind is not known; there are region"), ("?spot=perhaps", "spot is 'perhaps'; it is true or false"),
        ("?price=-1", "price is -1; it is at least 0"), ("?price=nan", "price is nan"), ("/nowhere", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=why):
            read(wrong)


def test_price_is_the_tables_or_what_was_said_and_never_guessed() -> None:
    known = "by a table of 2025-06-01, which is an estimate: --price says it better"
    assert Profile().price_in("us-east-1") == (0.08925, known)
    assert Profile(price=0.0).price_in("mars-1") == (0.0, "as the profile says")
    with pytest.raises(RequestError, match=r"what c7i\.large costs in mars-1 is not in the table"):
        Profile().price_in("mars-1")
