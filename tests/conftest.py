"""Hypothesis here knows no deadline for an example; where CI is set, it tries the same ones on every run.

A shell that starts something in the background lets it ignore SIGINT, and so do all programs that it starts: those that
tests interrupt would not notice. Here it is as in the foreground.
"""

from __future__ import annotations

import os
import signal

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
