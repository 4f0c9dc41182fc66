"""Lists the Cython extensions; everything else is in pyproject.toml. Every `.pyx` of the packages is one.

With CLOUDBURST_EXTENSIONS=later none is compiled: an editable installation compiles in a directory that is thrown away,
and `build_ext --inplace`, which keeps what has not changed, would compile everything a second time.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PACKAGES = ("anna", "cloudburst", "bench", "demos")
SOURCES = sorted(str(path) for package in PACKAGES for path in Path(package).rglob("*.pyx"))
JOBS = os.cpu_count() or 1
LATER = os.environ.get("CLOUDBURST_EXTENSIONS") == "later"

setup(
    ext_modules=cythonize(
        [
            Extension(source.removesuffix(".pyx").replace("/", "."), [source], extra_compile_args=["-O3", "-g0"])
            for source in ([] if LATER else SOURCES)
        ],
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
            "freethreading_compatible": False,
        },
        nthreads=JOBS,
    ),
    options={"build_ext": {"parallel": JOBS}},
)
