"""Builds the extensions of amp_ext; everything else is said in pyproject.toml.

A build has two outcomes: the wheel with every extension, or, where extensions were not wanted, the
pure wheel without amp_ext. Nothing here is optional: a compiler that fails fails the build.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

UNWANTED = os.environ.get("AIOMULTIPROCESS_NO_EXTENSIONS", "") not in ("", "0")
# Windows has neither memfd nor eventfd nor pthreads: it always gets the pure wheel.
PURE = UNWANTED or sys.platform == "win32"

# Headers and .pxd reach a rebuild through `depends` and the sdist through it and MANIFEST.in.
SHARED = sorted(str(path) for pattern in ("*.h", "*.pxd") for path in Path("amp_ext").glob(pattern))


def extension(source: Path) -> Extension:
    """One amp_ext/<name>.pyx as the module amp_ext.<name>."""
    return Extension(
        f"amp_ext.{source.stem}",
        [str(source)],
        depends=SHARED,
        include_dirs=["amp_ext"],
        extra_compile_args=["-std=c11", "-O3", "-pthread"],
        extra_link_args=["-pthread"],
    )


def extensions() -> list[Extension]:
    """Every extension there is to build: an empty list would be a silently pure wheel."""
    sources = sorted(Path("amp_ext").glob("*.pyx"))
    if not sources:
        raise SystemExit("setup.py: no amp_ext/*.pyx here, so there is nothing to build")
    return [extension(source) for source in sources]


packages = find_packages("src")
if PURE:
    setup(packages=packages)
else:
    setup(packages=[*packages, "amp_ext"], ext_modules=extensions())
