"""Traces of calls by OpenTelemetry: one trace from the program that calls to the executors and their store operations.

`trace()` makes this program trace its calls; executors need nothing (`cloudburst.spans`). Their spans come back with
the replies and go to the same exporter, as if they had been made here. What is not sampled is not recorded anywhere.
Source: the optional extra `cloudburst[tracing]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cloudburst import spans
from cloudburst.errors import EnvironmentMismatch, RequestError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

SCOPE: Final = "cloudburst"


class Tracing:
    """The tracing of this program, from `trace` to `stop`."""

    def __init__(self, provider: TracerProvider, own: bool) -> None:
        self.provider = provider
        self._own = own
        self._tracer = provider.get_tracer(SCOPE)
        self._before = spans.begin, spans.around
        spans.begin, spans.around = self._begin, self._around

    def flush(self) -> None:
        """Have the exporter send what it has."""
        self.provider.force_flush()

    def stop(self) -> None:
        """Trace no more; what has ended is exported."""
        spans.begin, spans.around = self._before
        if self._own:
            self.provider.shutdown()

    def __enter__(self) -> Tracing:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _begin(self, name: str) -> _Outgoing | None:
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(f"call {name}", kind=SpanKind.CLIENT, attributes={"cloudburst.function": name})
        return _Outgoing(self, span) if span.is_recording() else None

    @contextmanager
    def _around(self, name: str, attributes: dict[str, Any]) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, attributes=attributes):
            yield

    def take_in(self, returned: list[spans.Span]) -> None:
        """Export spans that were recorded elsewhere, with the ids that they have."""
        processor: Any = self.provider._active_span_processor
        for one in returned:
            processor.on_end(_readable(one))


class _Outgoing:
    """One call that this program traces."""

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self._tracing = tracing
        self._span = span
        context = span.get_span_context()
        self.parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def end(self, error: BaseException | None, returned: tuple[bytes, ...], attributes: dict[str, Any]) -> None:
        """End its span, and export those that came back."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(attributes)
        if error is not None:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__qualname__}: {error}"[:1000]))
        self._span.end()
        self._tracing.take_in([span for one in returned for span in spans.unpack(one)])


def trace(exporter: SpanExporter | None = None) -> Tracing:
    """Trace this program's calls from now on, to `exporter`, or to the global tracer provider when there is none.

    Raises EnvironmentMismatch where OpenTelemetry is not installed, RequestError when the global provider is not its
    SDK's, so that nothing would be exported.
    """
    try:
        from opentelemetry import trace as global_trace
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as fault:
        raise EnvironmentMismatch(f"tracing needs OpenTelemetry: pip install opentelemetry-sdk ({fault})") from None
    if exporter is not None:
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SCOPE}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return Tracing(provider, own=True)
    found = global_trace.get_tracer_provider()
    if not isinstance(found, TracerProvider):
        raise RequestError("no exporter was given, and there is no global TracerProvider of the OpenTelemetry SDK")
    return Tracing(found, own=False)


def _readable(one: spans.Span) -> Any:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(span: str, remote: bool) -> SpanContext:
        return SpanContext(int(one.trace, 16), int(span, 16), remote, TraceFlags(TraceFlags.SAMPLED))

    status, events = Status(StatusCode.UNSET), []
    if one.error is not None:
        kind, message = one.error
        status = Status(StatusCode.ERROR, f"{kind}: {message}")
        events = [Event("exception", {"exception.type": kind, "exception.message": message}, one.ended_ns)]
    return ReadableSpan(
        one.name, context=context(one.id, False), parent=context(one.parent, one.kind == spans.SERVER),
        resource=Resource.create({SERVICE_NAME: f"{SCOPE}-executor"}), attributes=one.attributes, events=events,
        kind=SpanKind(one.kind), instrumentation_scope=InstrumentationScope(SCOPE), status=status,
        start_time=one.begun_ns, end_time=one.ended_ns,
    )  # fmt: skip
