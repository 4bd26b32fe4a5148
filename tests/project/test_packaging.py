"""The installed package, which the suite tests, and not the folder beside it."""

import importlib
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import aiomultiprocess
from conftest import BUILT, ROOT

MODULES = sorted(path.stem for path in (ROOT / "amp_ext").glob("*.pyx"))


def python(code: str) -> str:
    """What a fresh interpreter prints, which has the environment's packages and nothing else."""
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(not BUILT, reason="the pure wheel is installed")
@pytest.mark.parametrize("module", MODULES)
def test_the_extension_that_is_tested_is_compiled_and_is_not_in_the_checkout(module: str) -> None:
    file = Path(importlib.import_module(f"amp_ext.{module}").__file__ or "")
    assert file.name.endswith(tuple(EXTENSION_SUFFIXES))
    assert file.parents[1] == Path(aiomultiprocess.__file__).parents[1]
    assert file.parent != ROOT / "amp_ext"


def test_every_public_name_is_there_and_listed() -> None:
    for name in aiomultiprocess.__all__:
        assert getattr(aiomultiprocess, name) is not None
    assert set(dir(aiomultiprocess)) >= set(aiomultiprocess.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pol'"):
        _ = aiomultiprocess.Pol  # type: ignore[attr-defined]


def test_submodules_are_attributes_after_one_plain_import() -> None:
    code = "import aiomultiprocess as a; a.core.set_start_method; a.pool.Pool; a.types; a.scheduler"
    python(code)


def test_importing_the_package_imports_neither_asyncio_nor_multiprocessing() -> None:
    code = (
        "import sys, aiomultiprocess\n"
        "print({'asyncio', 'multiprocessing', 'argparse'} & set(sys.modules))"
    )
    assert python(code) == "set()\n"
