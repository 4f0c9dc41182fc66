"""`cb build FILE|DIR -o OUT`: the command's options, and what it says of the file that it made.

The one rule: the result goes to standard output; what was left out, and what the file does not bring, to standard
error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudburst.commandline import ENVIRONMENT, FAILED, OK, USAGE, Add, print_json

if TYPE_CHECKING:
    from cloudburst.build.application import Application
    from cloudburst.build.packing import Built

EXAMPLE: Final = """cb build wordcount.py -o wc --test-data tests/words --set n=5
  ./wc test && ./wc run 'books/*.txt'
  cb build . -o app --reproducible-check"""


def add_to(add: Add) -> None:
    """Add the command."""
    parser = add("build", run, "make one file of an application and all that it needs", EXAMPLE)
    parser.add_argument("source", type=Path, metavar="FILE|DIR", help="a Python file, or a directory with a main.py")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="the file to make (default: the name)")
    parser.add_argument("--test-data", type=Path, metavar="DIR", help="what `OUT test` runs on (docs/build.md)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter that is not given when it runs"
    )
    parser.add_argument(
        "--reproducible-check", action="store_true", help="build twice, and fail unless both are the same to the byte"
    )


def run(parsed: argparse.Namespace) -> int:
    """Build the file and say what it is; return the exit code."""
    from cloudburst.build import application, packing
    from cloudburst.errors import EnvironmentMismatch, RequestError

    try:
        tests = None if parsed.test_data is None else parsed.test_data.absolute()
        found = application.read(parsed.source, parsed.set, tests)
        out = parsed.out or Path(found.name)
        if out.is_dir() or out.absolute() == (found.root / found.main).absolute():
            raise RequestError(f"{out} is there and no file that was built: say another with -o")
        built = packing.build(found, out, _progress if sys.stderr.isatty() and not parsed.json else lambda _: None)
        differs = _differs(found, built) if parsed.reproducible_check else None
    except (EnvironmentMismatch, RequestError, packing.BuildFailed) as fault:
        code = ENVIRONMENT if isinstance(fault, EnvironmentMismatch) else USAGE
        return _refuse(fault, parsed.json, FAILED if isinstance(fault, packing.BuildFailed) else code)
    _say(built, differs, parsed.json)
    return FAILED if differs else OK


def _progress(text: str) -> None:
    """Say what is done now, to who waits for it at a terminal."""
    sys.stderr.write(f"cb build: {text} …\n")
    sys.stderr.flush()


def _differs(found: Application, built: Built) -> str:
    """Build it once more, elsewhere; return what differs."""
    from cloudburst.build import packing

    with tempfile.TemporaryDirectory(prefix="cb-build-") as made:
        return packing.difference(built.path, packing.build(found, Path(made, built.path.name)).path)


def _say(built: Built, differs: str | None, as_json: bool) -> None:
    manifest = built.manifest
    if as_json:
        about = {"file": str(built.path), "bytes": built.bytes, "sha256": built.sha256, "name": manifest.name,
                 "version": manifest.version, "digest": manifest.digest, "left_out": built.left_out,
                 "not_brought": built.unmet}  # fmt: skip
        print_json(about | ({} if differs is None else {"reproducible": not differs}))
    else:
        print(
            f"{built.path}: {built.bytes:,} bytes, {len(manifest.files)} files and {len(manifest.distributions)}"
            f" packages, for Python {manifest.python} on {manifest.platform.partition(' ')[2]}\nsha256 {built.sha256}"
        )
        if differs == "":
            print("reproducible: built twice, the same to the byte")
    for inside, why in sorted(built.left_out.items()):
        sys.stderr.write(f"cb build: left out {inside}: {why}\n")
    if built.unmet:
        sys.stderr.write(
            f"cb build: nothing in the file brings {', '.join(built.unmet)}, which it imports: name what does among its"
            " dependencies (docs/build.md)\n"
        )
    if differs:
        sys.stderr.write(f"cb build: not reproducible: two builds differ in {differs}\n")


def _refuse(fault: Exception, as_json: bool, code: int) -> int:
    if as_json:
        print_json({"error": {"type": type(fault).__name__, "message": str(fault), "definite": True}})
    else:
        sys.stderr.write(f"cb build: {fault}\n")
    return code
