"""Modules of a program's own go with its functions, to executors that have none of its files."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst.locality import _imported_by_source, bundle_of, unpack_bundle
from cloudburst.pickling import dumps_function
from tests.cloudburst import samples
from tests.cloudburst.conftest import Post

FILES = {
    "local_base.py": """
        class Shape:
            sides = 0
            def describe(self):
                return f"{type(self).__name__} with {self.sides} sides"
    """,
    "local_shapes.py": """
        import threading
        from local_base import Shape

        lock = threading.Lock()

        class Square(Shape):
            sides = 4
            def __init__(self, size):
                self.size = size

        def doubled(square):
            with lock:
                assert isinstance(square, Square) and isinstance(square, Shape)
                return Square(2 * square.size)

        def lazily(x):
            import local_late
            return local_late.negative(x)
    """,
    "local_late.py": """
        def negative(x):
            return -x
    """,
    "local_package/__init__.py": """
        from .inner import deep
    """,
    "local_package/inner.py": """
        from . import constants
        def deep(x):
            return x + constants.OFFSET
    """,
    "local_package/constants.py": """
        OFFSET = 1000
    """,
}


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture
def local(directory: Path) -> Iterator[Path]:
    """A directory of local modules, on this program's path."""
    write(directory, FILES)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    yield directory
    sys.path.remove(str(directory))
    for name in [name for name in sys.modules if name.startswith("local_")]:
        del sys.modules[name]


def names_of(function: Any) -> list[str]:
    return sorted(unpack_bundle(bundle_of(function, dumps_function(function, "f")) or b"\x90"))


def test_what_a_function_needs_of_local_modules_is_found(local: Path) -> None:
    shapes, package = importlib.import_module("local_shapes"), importlib.import_module("local_package")
    assert names_of(shapes.doubled) == ["local_base", "local_late", "local_shapes"]
    assert names_of(package.deep) == ["local_package", "local_package.constants", "local_package.inner"]
    assert names_of(shutil.copy) == [], "of the standard library"
    assert names_of(pytest.skip) == [], "installed"
    assert names_of(cb.gather) == [], "there anyway"
    assert "tests.cloudburst.samples" in names_of(samples.square)


class Yields:
    """Lets another thread run when it is collected, which happens in the middle of things."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0)


def test_sources_may_be_looked_through_by_many_threads_at_once() -> None:
    """CPython 3.11 raised SystemError in one of two that parse: a registration failed."""
    source = (False, "large.py", (Path(cb.__file__).parent / "graph.py").read_text())
    failed: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(20):
                Yields()
                assert "msgpack" in set(_imported_by_source("large", source))
        except SystemError as error:
            failed.append(error)

    before, switching = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(6)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        sys.setswitchinterval(switching)
    assert failed == []


def in_every_executor(client: cb.Client, name: str, *args: Any) -> list[Any]:
    """Call a function until each of the node's executors has run it."""
    client.register(lambda *args: (os.getpid(), cb.call(name, *args)), name="elsewhere")
    return [client.call(name, *args) for _ in range(6)] + [client.call("elsewhere", *args)[1] for _ in range(2)]


def test_functions_and_classes_come_to_executors_that_have_no_files(client: cb.Client, local: Path) -> None:
    shapes, package = importlib.import_module("local_shapes"), importlib.import_module("local_package")
    for function in (shapes.doubled, shapes.lazily, package.deep):
        client.register(function)
    client.register(lambda square: shapes.doubled(square).describe(), name="describe_doubled")
    shutil.rmtree(local)
    local.mkdir()
    for found in in_every_executor(client, "doubled", shapes.Square(3)):
        assert (type(found), found.size) == (shapes.Square, 6)
    assert set(in_every_executor(client, "describe_doubled", shapes.Square(3))) == {"Square with 4 sides"}
    assert set(in_every_executor(client, "deep", 5)) == {1005}
    assert set(in_every_executor(client, "lazily", 5)) == {-5}


def test_changed_module_is_a_new_version_and_runs_at_once(client: cb.Client, local: Path) -> None:
    shapes = importlib.import_module("local_shapes")
    client.register(shapes.doubled, name="describing")
    assert len(client.versions("describing")) == 1
    client.register(shapes.doubled, name="describing")
    assert len(client.versions("describing")) == 1, "the same again is no new version"
    write(local, {"local_late.py": "def negative(x):\n    return -2 * x\n"})
    importlib.invalidate_caches()
    client.register(shapes.lazily, name="lazily_changed")
    assert set(in_every_executor(client, "lazily_changed", 5)) == {-10}
    write(local, {"local_late.py": "def negative(x):\n    return -3 * x\n"})
    client.register(shapes.lazily, name="lazily_changed")
    assert set(in_every_executor(client, "lazily_changed", 5)) == {-15}
    assert [one["version"] for one in client.versions("lazily_changed")] == [1, 2]


def test_modules_of_one_name_of_two_programs_are_kept_apart(client: cb.Client, local: Path) -> None:
    for which in ("first", "second"):
        text = f"NAME = {which!r}\ndef told():\n    import local_twin\n    return NAME, local_twin.NAME\n"
        write(local, {"local_twin.py": text})
        importlib.invalidate_caches()
        sys.modules.pop("local_twin", None)
        twin = importlib.import_module("local_twin")
        client.register(twin.told, name=f"told_{which}")
    sys.modules.pop("local_twin")
    for _ in range(3):
        assert set(in_every_executor(client, "told_first")) == {("first", "first")}
        assert set(in_every_executor(client, "told_second")) == {("second", "second")}
    for _ in range(5):  # nothing is looked up any more
        assert client.call("told_first") == ("first", "first")
        assert client.call("told_second") == ("second", "second")


def come_whole(address: str) -> int:
    """Be loaded like NumPy: what has come by half cannot come again."""
    import builtins
    import time

    from tests.cloudburst.conftest import release

    assert not getattr(builtins, "came_by_half", False), "cannot load module more than once per process"
    builtins.came_by_half = True  # type: ignore[attr-defined]
    release(address, "loading")
    time.sleep(0.3)
    builtins.came_by_half = False  # type: ignore[attr-defined]
    return 42


class ComesWhole:
    def __init__(self, address: str) -> None:
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return come_whole, (self.address,)


def test_what_is_cancelled_while_it_is_loaded_is_loaded_whole(client: cb.Client, post: Post) -> None:
    """NumPy whose import was cut off cannot be imported again: its executor could not run anything with it any more."""
    needed = ComesWhole(post.address)
    client.register(lambda: needed, name="needing")
    assert post.wait() == ["loading"]
    first = client.spawn("needing")
    assert post.wait() == ["loading"]
    assert first.cancel()
    assert set(in_every_executor(client, "needing")) == {42}


def test_traceback_shows_the_line_of_a_module_that_is_not_there(client: cb.Client, local: Path) -> None:
    write(local, {"local_faulty.py": "def fail():\n    raise ValueError('of a local module')  # this line\n"})
    importlib.invalidate_caches()
    client.register(importlib.import_module("local_faulty").fail, name="fail_locally")
    (local / "local_faulty.py").unlink()
    with pytest.raises(ValueError, match="of a local module") as caught:
        client.call("fail_locally")
    assert isinstance(caught.value, cb.FunctionError)
    assert "# this line" in caught.value.remote_traceback


def test_script_and_what_its_functions_import_while_they_run(client: cb.Client, directory: Path) -> None:
    write(directory, {
        "local_helper.py": "def triple(x):\n    return 3 * x\n",
        "script.py": """
            import os
            import cloudburst as cb

            def late(x):
                import local_helper
                return local_helper.triple(x)

            class Notes:
                def add(self, x):
                    from local_helper import triple
                    return triple(x)

            cb.connect()
            cb.register(late)
            cb.register(Notes)
            os.unlink("local_helper.py")
            print({cb.call("late", n) for n in (1, 1, 1)}, cb.call("Notes.add", 2))
        """,
    })  # fmt: skip
    ran = subprocess.run(
        [sys.executable, directory / "script.py"], capture_output=True, text=True, timeout=60, cwd=directory
    )
    assert (ran.stdout, ran.stderr) == ("{3} 6\n", "")
