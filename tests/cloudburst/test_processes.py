"""Waiting for the end of processes that are not one's children, and being told when it does not come."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cloudburst.processes import stop, wait_for_end

STUBBORN = """
import signal, sys
heard = []
def hear(number, frame):
    heard.append(number)
    print("heard", flush=True)
    if len(heard) == 2:
        sys.exit(0)
signal.signal(signal.SIGTERM, hear)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[str]]:
    """A process that ends at the second signal."""
    started = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    yield started
    started.kill()
    started.wait()
    started.stdout.close()


def test_process_that_does_not_end_is_named(
    stubborn: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Those who waited for one in vain went on after 70 s without a word."""
    with caplog.at_level(logging.WARNING):
        assert not wait_for_end(stubborn.pid, "the node of this test", 0.01)
    assert f"the node of this test (pid {stubborn.pid}) has not ended" in caplog.text


def test_process_that_has_ended_is_not_waited_for(stubborn: subprocess.Popen[str]) -> None:
    stubborn.kill()
    assert wait_for_end(stubborn.pid, "it")
    stubborn.wait()
    assert wait_for_end(stubborn.pid, "it")
    assert stop(stubborn.pid, "it")


def test_who_is_in_a_hurry_has_it_told_twice(stubborn: subprocess.Popen[str]) -> None:
    hurried, hurry = os.pipe()
    ended = []
    with os.fdopen(hurried) as waiting:
        thread = threading.Thread(target=lambda: ended.append(stop(stubborn.pid, "it", 20.0, waiting)))
        thread.start()
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "heard\n"
        os.close(hurry)
        thread.join()
    assert ended == [True]
    assert stubborn.wait() == 0
