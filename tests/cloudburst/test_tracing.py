"""Traces: one tree of spans for each call, whose parents are right, whichever processes they were recorded in."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import cloudburst as cb
from cloudburst import config, spans
from cloudburst.spans import Recorder, Span
from tests.cloudburst.conftest import WAIT_S

pytest.importorskip("opentelemetry.sdk", reason="LOUD: OpenTelemetry is not installed, so nothing can be traced")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

Tree = dict[str, Any]


class Seen:
    """The exporter, and what it has been given."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = cb.trace(self.exporter)

    def spans(self, count: int) -> list[ReadableSpan]:
        """Return the spans once there are so many: a future's own ends just after its result is there."""
        end = time.monotonic() + WAIT_S
        while True:
            self.tracing.flush()
            found = list(self.exporter.get_finished_spans())
            if len(found) >= count or time.monotonic() > end:
                assert len(found) == count, [one.name for one in found]
                return found
            time.sleep(0.01)

    def tree(self, count: int) -> Tree:
        """Return the spans as {name: {children}}, from those without a parent among them; all are of one trace."""
        found = self.spans(count)
        assert len({one.context.trace_id for one in found}) == 1
        ids = {one.context.span_id for one in found}
        assert len(ids) == count

        def under(parent: int | None) -> Tree:
            children = [one for one in found if (one.parent.span_id if one.parent else None) == parent]
            return {one.name: under(one.context.span_id) for one in sorted(children, key=lambda one: one.name)}

        assert all(one.parent is None or one.parent.span_id in ids for one in found)
        return under(None)

    def one(self, name: str) -> ReadableSpan:
        [found] = [one for one in self.exporter.get_finished_spans() if one.name == name]
        return found


@pytest.fixture
def seen(client: cb.Client) -> Iterator[Seen]:
    found = Seen()
    yield found
    found.tracing.stop()
    assert spans.begin is None


def test_a_call_its_run_and_its_store_operations_are_one_tree(client: cb.Client, seen: Seen) -> None:
    def keep(key: str, value: int) -> list[Any]:
        cb.put(key, value)
        return cb.mget([key])

    client.register(keep)
    assert client.call("keep", "traced", 3) == [3]
    assert seen.tree(4) == {"call keep": {"run keep": {"store mget": {}, "store put": {}}}}
    put = seen.one("store put")
    assert put.attributes == {"cloudburst.key": "traced"}


def test_spans_say_what_and_where_and_in_which_order(client: cb.Client, seen: Seen) -> None:
    future = client.spawn("square", 3)
    assert future.result(timeout=WAIT_S) == 9
    assert seen.tree(2) == {"call square": {"run square": {}}}
    call, run = seen.one("call square"), seen.one("run square")
    assert (call.kind, run.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert call.attributes is not None
    assert run.attributes is not None
    assert call.attributes["cloudburst.invocation"] == run.attributes["cloudburst.invocation"] == future.id
    assert call.attributes["cloudburst.attempts"] == 1
    assert run.attributes["cloudburst.executor"] in {row["slot"] for row in client.status()["executors"]}
    assert run.resource.attributes["service.name"] == "cloudburst-executor"
    assert call.start_time is not None
    assert run.start_time is not None
    assert run.end_time is not None
    assert call.end_time is not None
    assert call.start_time <= run.start_time <= run.end_time <= call.end_time


def test_nested_calls_hang_under_the_run_that_made_them(client: cb.Client, seen: Seen) -> None:
    assert client.call("descend", 2) == 2
    run = {"run descend": {}}
    for _ in range(2):
        run = {"run descend": {"call descend": run}}
    assert seen.tree(6) == {"call descend": run}


def test_every_step_of_a_dag_hangs_under_its_call(client: cb.Client, seen: Seen) -> None:
    client.register(lambda n: n + 1, name="one up")
    client.register(lambda n: n * 2, name="doubled")
    client.register(lambda n: n * 3, name="tripled")
    client.register(lambda a, b: cb.get("of a dag", 0) + a + b, name="summed")
    branches = {"doubled": ["one up"], "tripled": ["one up"]}
    client.dag("traced dag", {"one up": [], **branches, "summed": ["doubled", "tripled"]})
    client.dag("traced chain", {"one up": [], "doubled": ["one up"]})
    assert client.call("traced dag", {"one up": (1,)}) == 10
    steps: Tree = {"run doubled": {}, "run one up": {}, "run summed": {"store get": {}}, "run tripled": {}}
    assert seen.tree(6) == {"call traced dag": steps}
    seen.exporter.clear()
    assert client.call("traced chain", {"one up": (1,)}) == 4
    assert seen.tree(3) == {"call traced chain": {"run doubled": {}, "run one up": {}}}


def test_coroutines_and_references_are_traced_too(client: cb.Client, seen: Seen) -> None:
    async def added(x: int, y: int) -> int:
        return x + y

    client.register(added)
    assert client.options(hedge=30.0).call("added", 1, 2) == 3
    assert seen.tree(2) == {"call added": {"run added": {}}}
    client.put("one to add", 1)
    seen.tracing.flush()
    seen.exporter.clear()
    assert client.call("added", cb.Ref("one to add"), 2) == 3
    assert seen.tree(3) == {"call added": {"run added": {"store mget": {}}}}


def test_an_exception_is_in_the_spans_of_all_it_has_passed(client: cb.Client, seen: Seen) -> None:
    with pytest.raises(ValueError, match="bad"):
        client.call("nested_failure")
    assert seen.tree(4) == {"call nested_failure": {"run nested_failure": {"call fail": {"run fail": {}}}}}
    for one in seen.exporter.get_finished_spans():
        assert one.status.status_code is StatusCode.ERROR
        assert "ValueError: " in str(one.status.description)
        assert [event.name for event in one.events] == ["exception"]


def test_a_lost_executor_and_a_call_that_was_not_sent_are_in_the_callers_span(client: cb.Client, seen: Seen) -> None:
    import os

    client.register(lambda: os._exit(3), name="leaves its trace")
    with pytest.raises(cb.ExecutorLost):
        client.options(retries=0).call("leaves its trace")
    with pytest.raises(cb.NotSerializable):
        client.call("square", (n for n in range(3)))
    assert {one.name: one.status.status_code for one in seen.spans(2)} == {
        "call leaves its trace": StatusCode.ERROR, "call square": StatusCode.ERROR,
    }  # fmt: skip


def test_a_continuation_is_a_run_under_the_same_call_and_the_one_before_it_has_not_failed(
    client: cb.Client, seen: Seen
) -> None:
    client.register(lambda x: cb.Continue("square", x), name="continue_traced")
    assert client.call("continue_traced", 3) == 9
    assert seen.tree(3) == {"call continue_traced": {"run continue_traced": {}, "run square": {}}}
    assert seen.one("run continue_traced").status.status_code != StatusCode.ERROR


def test_calls_join_the_span_that_is_open_in_the_program_and_its_global_provider(client: cb.Client) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    from opentelemetry import trace

    with pytest.raises(cb.RequestError, match="no global TracerProvider"):
        cb.trace()
    trace.set_tracer_provider(provider)
    with cb.trace():
        with trace.get_tracer("program").start_as_current_span("work"):
            assert client.call("square", 3) == 9
        found = {one.name: one for one in exporter.get_finished_spans()}
    work, call, run = found["work"], found["call square"], found["run square"]
    assert (call.parent.span_id, run.parent.span_id) == (work.context.span_id, call.context.span_id)  # type: ignore[union-attr]
    client.call("square", 3)
    assert len(exporter.get_finished_spans()) == 3


def test_nothing_travels_when_nobody_traces(client: cb.Client) -> None:
    """A call's extras are empty, and its reply has no spans, also in executors that have recorded before."""
    task = client.spawn("square", 3)
    assert task.result(timeout=WAIT_S) == 9
    assert (task._work.extras, task._work.spans) == (b"", ())  # type: ignore[attr-defined]


def test_what_is_recorded_of_one_call_is_bounded_and_the_rest_counted() -> None:
    recorder = Recorder(f"00-{'1' * 32}-{'2' * 16}-01")
    recorder.keep([Span("1" * 32, f"{n:016x}", "2" * 16, "x", 0, 1, 2) for n in range(config.TRACE_SPANS_MAX + 7)])
    found = spans.unpack(recorder.pack())
    assert len(found) == config.TRACE_SPANS_MAX
    assert found[-1].attributes == {"cloudburst.spans_dropped": 7}


@pytest.mark.parametrize("text", ["", "00-1-2-01", f"00-{'1' * 32}-{'2' * 16}-00", f"01-{'1' * 32}-{'2' * 16}-01"])
def test_what_is_no_context_is_refused(text: str) -> None:
    with pytest.raises(cb.ProtocolError, match="is no traceparent"):
        Recorder(text)


def test_without_opentelemetry_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import cloudburst as cb\n"
        "try: cb.trace()\n"
        "except cb.EnvironmentMismatch as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install opentelemetry-sdk" in said
