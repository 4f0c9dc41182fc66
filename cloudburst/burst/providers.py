"""Which providers there are, by the name that `on=` and `--on` have before the colon.

One of another distribution is an entry point of the group `cloudburst.providers`, made with the same three arguments:
what stands behind the colon, a directory of the run's own, and whom to tell of machines.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any, Final

from cloudburst.burst.provider import Notice, Provider
from cloudburst.errors import NotSupported

GROUP: Final = "cloudburst.providers"
OURS: Final = {
    "local": "cloudburst.burst.thismachine:ThisMachine",
    "ec2": "cloudburst.burst.ec2.hosts:Ec2Hosts",
    "ray": "cloudburst.burst.rayhosts:RayHosts",
    "ssh": "cloudburst.burst.ssh:SshHosts",
}


def provider_of(on: str, base: Path, notice: Notice) -> Provider:
    """Return the provider that `on` names: `local`, `NAME:WHERE`, `NAME?WHERE`. Raises NotSupported, RequestError.

    What is given behind a question mark keeps it.
    """
    name = re.split("[:?]", on, maxsplit=1)[0]
    where = on.removeprefix(name).removeprefix(":")
    made: Provider = _class_of(name, on)(where, base, notice)
    return made


def _class_of(name: str, on: str) -> Any:
    if name in OURS:
        module, _, attribute = OURS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    plugins = {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}
    if name in plugins:
        return plugins[name].load()
    there = ", ".join(sorted({*OURS, *plugins}))
    raise NotSupported(f"nodes cannot be started on {on!r}; there are {there}")
