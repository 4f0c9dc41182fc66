"""Keys that came by a token are renewed when half of their life is over, as long as they are good.

The one rule: nobody is asked before, and from then on again and again, at least every tenth of what is left, until new
keys are there; the former go on meanwhile. Source: docs/decisions/0049.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography import x509

from anna.authority import SKEW
from anna.enrolment import ENROLLED, renew
from anna.errors import AnnaError
from anna.keys import CERTIFICATE, BadKeys, Keys, keep, place_of

AGAIN_S: Final = 60.0
"""Least time between two attempts, unless the keys last so briefly that a tenth of what is left is less."""

LEAST_S: Final = 0.05

log = logging.getLogger("anna.renewal")


def wait_s(begun: float, until: float, now: float, failed: bool) -> float:
    """Return how long to wait before keys of this life are to be renewed; `failed`: that was just attempted."""
    half = begun + (until - begun) / 2
    if now < half:
        return half - now
    left = max(0.0, until - now)
    return max(LEAST_S, min(AGAIN_S, left / 10)) if failed else 0.0


def life_of(place: str) -> tuple[float, float]:
    """Return when the certificate at a place of keys began, and when it ends. Raises BadKeys."""
    leaf = x509.load_pem_x509_certificate(place_of(place).read(CERTIFICATE))
    return (leaf.not_valid_before_utc + SKEW).timestamp(), leaf.not_valid_after_utc.timestamp()


def place_in(directory: Path) -> str | None:
    """Return where the keys in a directory are renewed; None for those that came by no token."""
    try:
        return str(json.loads((directory / ENROLLED).read_text())["at"])
    except (OSError, ValueError, KeyError):
        return None


def renew_in(directory: Path) -> None:
    """Renew the keys in a directory now. Raises BadKeys, NotAdmitted, OSError."""
    at = place_in(directory)
    if at is None:
        raise BadKeys(f"the keys in {directory} came by no token: their authority issues others (`anna keys issue`)")
    keep(directory, renew(Keys(directory), at))


class Renewal:
    """Renews, in a thread, the keys at a place for as long as the process lives; `put` is given the new ones."""

    def __init__(self, place: str, at: str, put: Callable[[Mapping[str, str]], None]) -> None:
        self._place, self._at, self._put = place, at, put
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Renew them no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        failed = False
        while not self._ended.wait(wait_s(*life_of(self._place), time.time(), failed)):
            try:
                self._put(renew(Keys(self._place), self._at))
                failed = False
                log.info("the keys of this node were renewed")
            except (AnnaError, OSError) as fault:
                failed = True
                log.warning("the keys of this node are not renewed yet: %s", fault)
