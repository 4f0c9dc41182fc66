"""What machines of EC2 are to be: `ec2`, `ec2?type=c7i.xlarge&spot=1`, or a file with the same names, `ec2:FILE`.

The one rule: everything can be left out, and what is not is checked before anything is asked for. Prices are a table
with a date (`prices.json`): a machine that is not in it is refused until its price is said, because limits of cost are
worth nothing otherwise. Source: burst-systems §5.5; docs/decisions/0042.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from cloudburst import config
from cloudburst.errors import RequestError

TRUE: Final = ("1", "true", "yes")
FALSE: Final = ("0", "false", "no")


@dataclass(frozen=True, slots=True)
class Profile:
    """What is wanted; "" is what the account, or this machine, has for it.

    `spare` is how many more are asked for than are needed, as a share; `reach` from which addresses the cluster's ports
    can be reached beside its own; `lease_s` how long machines live without news of whoever asked for them.
    """

    region: str = ""
    type: str = "c7i.large"
    spot: bool = False
    image: str = ""
    python: str = "python3"
    subnet: str = ""
    bucket: str = ""
    reach: str = ""
    price: float | None = None
    spare: float = 0.1
    lease_s: float = config.CLOUD_LEASE_S

    def __post_init__(self) -> None:
        for name, least in (("price", 0.0), ("spare", 0.0), ("lease_s", 1.0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise RequestError(f"{name} is {value:g}; it is at least {least:g}")

    def spares(self, count: int) -> int:
        """Return how many more are asked for than so many."""
        return math.ceil(count * self.spare)

    def price_in(self, region: str) -> tuple[float, str]:
        """Return what one costs in an hour, in US dollars, and by what that is known; for spot it is the most it can.

        Raises RequestError.
        """
        if self.price is not None:
            return self.price, "as the profile says"
        table = json.loads((Path(__file__).parent / "prices.json").read_text())
        known: float | None = table["regions"].get(region, {}).get(self.type)
        if known is None:
            raise RequestError(
                f"what {self.type} costs in {region} is not in the table of {table['date']}: say it, in US dollars an"
                " hour: --price 0.12 (or price = 0.12 in the profile)"
            )
        return known, f"by a table of {table['date']}, which is an estimate: --price says it better"


def read(where: str) -> Profile:
    """Return the profile that stands behind `ec2`: "", "?name=value&…", or the name of a file. Raises RequestError."""
    if where.startswith("?"):
        given = parse_qsl(where[1:], keep_blank_values=True)
        return _profile(f"ec2{where}", {name: _value(name, text) for name, text in given})
    if not where:
        return Profile()
    try:
        with open(Path(where).expanduser(), "rb") as file:
            said = tomllib.load(file)
    except OSError as fault:
        why = f"the profile cannot be read: {fault}; --on ec2:FILE names a file, --on ec2 needs none"
        raise RequestError(why) from None
    except tomllib.TOMLDecodeError as fault:
        raise RequestError(f"{where} is no TOML: {fault}") from None
    return _profile(where, said)


def _kind(name: str) -> type:
    if name == "spot":
        return bool
    return float if name in ("price", "spare", "lease_s") else str


def _value(name: str, text: str) -> Any:
    """Return what a text of a query stands for; itself when it stands for nothing, which is then refused."""
    if _kind(name) is bool and text in (*TRUE, *FALSE):
        return text in TRUE
    if _kind(name) is float:
        try:
            return float(text)
        except ValueError:
            pass
    return text


def _profile(where: str, said: Mapping[str, Any]) -> Profile:
    known = [one.name for one in fields(Profile)]
    for name, value in said.items():
        if name not in known:
            raise RequestError(f"{where}: {name} is not known; there are {', '.join(known)}")
        kind = _kind(name)
        fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
        if not fits or (kind is float and isinstance(value, bool)):
            words = {bool: "true or false", float: "a number", str: "text"}[kind]
            raise RequestError(f"{where}: {name} is {value!r}; it is {words}")
    return Profile(**said)
