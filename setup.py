"""Builds the extensions of amp_ext; everything else is said in pyproject.toml.

A build has two outcomes: the wheel with every extension, or the pure wheel without amp_ext, where
extensions were not wanted or cannot work. Nothing here is optional: a compiler that fails fails the
build.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import customize_compiler, new_compiler
from setuptools.errors import CompileError

UNWANTED = os.environ.get("AIOMULTIPROCESS_NO_EXTENSIONS", "") not in ("", "0")
# Windows has neither memfd nor eventfd nor pthreads: it always gets the pure wheel.
PURE = UNWANTED or sys.platform == "win32"
# For `make coverage`: each line of Cython reports to the tracer, which is slow and never released.
TRACED = os.environ.get("AIOMULTIPROCESS_TRACE", "") not in ("", "0")

# What has nothing to do with a compiler, and so works without one.
DESCRIBES = {"sdist", "egg_info", "dist_info"}

COMPILE_FLAGS = ["-std=c11", "-O3", "-pthread"]
# CPython's own flags often ask for symbols of a debugger: most of the size of a wheel, a third of
# the time to compile. `CFLAGS=-g` keeps them.
if "-g" not in os.environ.get("CFLAGS", "").split():
    COMPILE_FLAGS.append("-g0")

# Compiles if the answer is right. A lock of its own would be of no use in memory that processes
# share: amp_ext/ring.h needs atomic words of 32 and of 64 bits without one.
PROBE = """
#include <stdatomic.h>
#if (ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2) != {answer}
#error "the answer is the other one"
#endif
"""

# Headers and .pxd reach a rebuild through `depends` and the sdist through it and MANIFEST.in.
SHARED = sorted(str(path) for pattern in ("*.h", "*.pxd") for path in Path("amp_ext").glob(pattern))


def extension(source: Path) -> Extension:
    """One amp_ext/<name>.pyx as the module amp_ext.<name>."""
    built = Extension(
        f"amp_ext.{source.stem}",
        [str(source)],
        depends=SHARED,
        include_dirs=["amp_ext"],
        extra_compile_args=COMPILE_FLAGS,
        extra_link_args=["-pthread"],
    )
    if TRACED:
        built.define_macros.append(("CYTHON_TRACE_NOGIL", "1"))
        built.cython_directives = {"linetrace": True}
    return built


def extensions() -> list[Extension]:
    """Every extension there is to build: an empty list would be a silently pure wheel."""
    sources = sorted(Path("amp_ext").glob("*.pyx"))
    if not sources:
        raise SystemExit("setup.py: no amp_ext/*.pyx here, so there is nothing to build")
    return [extension(source) for source in sources]


def has_lock_free_words() -> bool:
    """Whether the target of the compiler has what a ring needs.

    Whichever the answer is, a program that compiles gives it. If none does, the compiler is broken,
    and its first error is raised.
    """
    try:
        compile_probe(answer=1)
    except CompileError as error:
        try:
            compile_probe(answer=0)
        except CompileError:
            raise error from None
        return False
    return True


def compile_probe(answer: int) -> None:
    """Compile `PROBE` for that answer, as the extensions will be compiled."""
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE.format(answer=answer))
        compiler.compile([str(source)], output_dir=folder, extra_postargs=COMPILE_FLAGS)


class Extended(Distribution):  # type: ignore[misc]  # setuptools has no types
    """The package with its extensions, unless the target turns out to have no use for them."""

    def run_commands(self) -> None:
        if not DESCRIBES.issuperset(self.commands) and not has_lock_free_words():
            print("setup.py: no lock-free 64-bit atomics for this target: the pure wheel is built")
            self.ext_modules = None
            self.packages.remove("amp_ext")
        super().run_commands()


packages = find_packages("src")
if PURE:
    setup(packages=packages)
else:
    setup(packages=[*packages, "amp_ext"], ext_modules=extensions(), distclass=Extended)
