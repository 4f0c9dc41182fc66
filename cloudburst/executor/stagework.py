"""What a stage of a DAG asks an executor to do: its steps, what they receive, and where the result goes.

A pure reading of a CALL's extras and payload, each part checked before anything is run. The payload is the results that
came along with it, if it was handed back once, and then each step's own arguments. Source: decision record 0019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloudburst import frames
from cloudburst.errors import ProtocolError
from cloudburst.executor.joins import Input
from cloudburst.executor.queue import Call


@dataclass(frozen=True, slots=True)
class StepWork:
    """One function to run: with which pickled arguments of its own, in which `refs` are the keys of the Refs.

    `flags`: SHARED when the arguments are in a segment, which `own` describes.
    """

    function: bytes
    version: int
    own: memoryview
    refs: tuple[str | bytes, ...]
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result is needed: at which position of which stage, in which executor of which node."""

    node: int
    slot: int
    incarnation: int
    low: int
    position: int


@dataclass(frozen=True, slots=True)
class StageWork:
    """A whole stage. `contexts` are what came along the edges, in their order; `trace`, if any, its caller's span.

    `run` is the call of the graph, the same for all of its stages and attempts.
    """

    dag: str
    inputs: tuple[Input, ...]
    steps: tuple[StepWork, ...]
    targets: tuple[Target, ...]
    key: str | bytes | None
    contexts: tuple[bytes, ...] = ()
    trace: str = ""
    run: int = 0

    @classmethod
    def of(cls, call: Call) -> StageWork:
        """Return what `call` asks for. Raises ProtocolError."""
        extras = frames.unpack(call.extras)
        payload = memoryview(call.payload)
        try:
            inputs: tuple[Input, ...] = call.inputs
            at = int(extras.get("inputs", 0))
            if at:
                inputs = tuple(Input(*one) for one in frames.unpack_inputs(payload[:at]))
            steps = []
            for function, version, size, refs, flags in extras["steps"]:
                if not 0 <= size <= len(payload) - at:
                    raise ProtocolError(f"a step's arguments have {size} bytes; {len(payload) - at} are left")
                own = payload[at : at + size]
                steps.append(StepWork(function.encode(), int(version), own, tuple(refs), int(flags)))
                at += size
            targets = tuple(Target(*map(int, one)) for one in extras.get("to", ()))
            begun = bytes(extras.get("session", b""))
            contexts = tuple(one.context for one in inputs if one.context) or ((begun,) if begun else ())
            key, trace = extras.get("key"), str(extras.get("trace", ""))
            return cls(str(extras["dag"]), inputs, tuple(steps), targets, key, contexts, trace, int(extras["run"]))
        except (AttributeError, KeyError, TypeError, ValueError) as fault:
            raise ProtocolError(f"a call that is no stage of a DAG: {type(fault).__name__}: {fault}") from None


def announced(call: Call) -> tuple[int, int]:
    """Return (positions, awaits) of a stage that waits for others. Raises ProtocolError."""
    extras: Any = frames.unpack(call.extras)
    try:
        positions, awaits = int(extras["positions"]), int(extras["awaits"])
    except (KeyError, TypeError, ValueError) as fault:
        raise ProtocolError(f"a stage that does not say what it awaits: {fault}") from None
    if not 1 <= awaits <= positions:
        raise ProtocolError(f"a stage that awaits {awaits} of {positions} results")
    return positions, awaits
