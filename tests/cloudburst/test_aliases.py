"""Versions of a function, and names that stand for one of them."""

from __future__ import annotations

import os

import pytest

import cloudburst as cb


def of(number: int, name: str, client: cb.Client) -> None:
    client.register(lambda: number, name=name)


def test_alias_stands_for_one_version_until_it_is_moved(client: cb.Client) -> None:
    for number in (1, 2):
        of(number, "numbered", client)
    client.alias("current", "numbered", version=1)
    assert client.call("current") == 1
    client.alias("current", "numbered")
    assert [client.call("current"), client.spawn("current").result(timeout=20)] == [2, 2]
    of(3, "numbered", client)
    assert client.call("current") == 2, "it stays where it was put"
    assert client.options(version=1).call("current") == 1, "its own first version"


def test_versions_are_listed_oldest_first(client: cb.Client) -> None:
    for number in (1, 2, 2, 3):
        of(number, "listed_versions", client)
    versions = client.versions("listed_versions")
    assert [one["version"] for one in versions] == [1, 2, 3]
    assert len({one["body"] for one in versions}) == 3
    with pytest.raises(cb.FunctionNotFound, match="no function is registered as 'never_registered'"):
        client.versions("never_registered")


def test_alias_is_listed_and_deleted_and_leaves_the_function(client: cb.Client) -> None:
    of(1, "aliased", client)
    client.alias("short_lived", "aliased")
    [shown] = [one for one in client.functions() if one["name"] == "short_lived"]
    assert (shown["alias"], shown["alias_version"]) == ("aliased", 1)
    client.delete("short_lived")
    with pytest.raises(cb.FunctionNotFound, match="'short_lived'"):
        client.call("short_lived")
    assert client.call("aliased") == 1


def test_alias_outlives_the_name_of_its_function(client: cb.Client) -> None:
    of(7, "forgotten", client)
    client.alias("kept", "forgotten")
    client.delete("forgotten")
    assert client.call("kept") == 7


class Version1:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> tuple[int, int, int]:
        self.count += 1
        return 1, os.getpid(), self.count


class Version2(Version1):
    def add(self) -> tuple[int, int, int]:
        return 2, *super().add()[1:]


def test_two_versions_of_a_class_keep_a_state_each(client: cb.Client) -> None:
    client.register(Version1, name="Versioned", replicas=1)
    client.alias("OldVersion", "Versioned")
    client.register(Version2, name="Versioned", replicas=1)
    found = [client.call(f"{name}.add") for _ in range(3) for name in ("OldVersion", "Versioned")]
    assert [(version, count) for version, _, count in found] == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
    assert len({pid for _, pid, _ in found}) == 1, "an alias has the homes of what it stands for"


def test_alias_is_a_step_of_a_dag(client: cb.Client) -> None:
    client.register(lambda x: x + 1, name="stepping")
    client.alias("step_alias", "stepping")
    client.register(lambda x: x + 100, name="stepping")
    client.register(Version1, name="SteppingClass")
    client.alias("StepClass", "SteppingClass")
    client.dag("alias_dag", {"step_alias": []})
    assert client.call("alias_dag", {"step_alias": (1,)}) == 2
    client.dag("alias_method_dag", {"StepClass.add": []})
    assert client.call("alias_method_dag")[0] == 1


def test_poison_stays_with_the_version_that_it_came_from(client: cb.Client) -> None:
    client.register(lambda: os._exit(1), name="poisonous")
    client.alias("poisonous_alias", "poisonous")
    of(1, "poisonous", client)
    with pytest.raises(cb.ExecutorLost):
        client.call("poisonous_alias")
    assert client.call("poisonous") == 1
    with pytest.raises(cb.ExecutorLost, match="is refused until it is registered anew"):
        client.call("poisonous_alias")
    assert [bool(one["poison"]) for one in client.versions("poisonous")] == [True, False]


def test_names_of_functions_and_aliases_are_not_mixed_up(client: cb.Client) -> None:
    of(1, "plain_name", client)
    client.alias("alias_name", "plain_name")
    with pytest.raises(cb.RequestError, match="'plain_name' is a function, and no alias; delete it first"):
        client.alias("plain_name", "square")
    with pytest.raises(cb.RequestError, match="'alias_name' is an alias of 'plain_name'; delete it first"):
        of(2, "alias_name", client)
    with pytest.raises(cb.RequestError, match=r"'Tally\.add' is a method"):
        client.alias("method_alias", "Tally.add")
    with pytest.raises(cb.FunctionNotFound):
        client.alias("nothing_alias", "plain_name", version=9)
    client.alias("second_alias", "alias_name")
    assert client.call("second_alias") == 1, "an alias of an alias stands for what that stands for now"
