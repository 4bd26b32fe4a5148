"""What is built from the sources: the sdist, the wheels, and the error of a broken compiler."""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

MODULES = sorted(path.stem for path in (ROOT / "amp_ext").glob("*.pyx"))
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", ".benchmarks", "__pycache__", "build", "dist",
    "*.egg-info", "*.so", "wheelhouse",
)  # fmt: skip

# A build makes an isolated environment and compiles; several at once share two cores.
pytestmark = pytest.mark.timeout(400)
needs_compiler = pytest.mark.skipif(sys.platform == "win32", reason="Windows is always pure")


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, our PYTHON* and AIOMULTIPROCESS_* variables kept out of it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIOMULTIPROCESS_", "PYTHON", "DIST_EXTRA_CONFIG"))
    }
    return subprocess.run(
        [str(part) for part in command],
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )


def check(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip_wheel(source: Path, into: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", into, source]
    return run(*command, **variables)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: building in the checkout itself would leave things in it."""
    copy = tmp_path_factory.mktemp("checkout") / "aiomultiprocess"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    return copy


@pytest.fixture(scope="session")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("sdist")
    check(run(sys.executable, "-m", "build", "--sdist", "--outdir", into, checkout))
    (archive,) = into.iterdir()
    return archive


def test_the_sdist_holds_every_source_and_nothing_that_was_generated(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("src", "amp_ext", "tests", "examples", "benchmarks")
    sources = {
        str(path.relative_to(ROOT))
        for folder in folders
        for pattern in ("*.py", "*.pyi", "*.pyx", "*.pxd", "*.h", "*.sh", "py.typed")
        for path in (ROOT / folder).rglob(pattern)
    } | {str(path.relative_to(ROOT)) for path in (ROOT / "amp_ext").glob("stress/*.c")}
    assert sources <= names
    assert {"LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyd", ".pyc", ".o"))]
    assert not {f"amp_ext/{module}.c" for module in MODULES} & names


@needs_compiler
def test_the_sdist_installs_in_an_empty_environment_and_runs_on_shm(
    sdist: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    check(run(python, "-m", "pip", "install", sdist))
    for module in MODULES:
        check(run(python, "-I", "-c", f"import amp_ext.{module}"))
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, math\n"
        "from aiomultiprocess import Pool\n"
        "async def main():\n"
        "    async with Pool(1) as pool:\n"
        "        print(pool.backend, await pool.map(math.sqrt, [4.0, 9.0]))\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    assert check(run(python, script)).split(maxsplit=1) == ["shm", "[2.0, 3.0]\n"]


def test_the_pure_wheel_is_for_any_python_and_leaves_the_extensions_out(
    checkout: Path, tmp_path: Path
) -> None:
    check(pip_wheel(checkout, tmp_path, AIOMULTIPROCESS_NO_EXTENSIONS="1"))
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "aiomultiprocess/py.typed" in names
    assert not [name for name in names if name.startswith("amp_ext")]


@needs_compiler
def test_a_compiler_that_fails_fails_the_build(checkout: Path, tmp_path: Path) -> None:
    broken = tmp_path / "checkout"  # of its own: objects of another test would spare the compiler
    shutil.copytree(checkout, broken, ignore=NOT_SOURCES)
    done = pip_wheel(broken, tmp_path / "wheels", CC="false")
    assert done.returncode != 0
    assert "'false'" in done.stdout + done.stderr
    assert not list(tmp_path.glob("wheels/*.whl"))


@needs_compiler
@pytest.mark.row("G72")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks an x86-64 compiler for an i486")
def test_a_target_without_lock_free_words_of_64_bits_gets_the_pure_wheel(
    checkout: Path, tmp_path: Path
) -> None:
    done = pip_wheel(checkout, tmp_path, CFLAGS="-m32 -march=i486")
    check(done)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("amp_ext")]


@needs_compiler
@pytest.mark.row("G72")
def test_a_compiler_that_is_broken_for_its_target_is_an_error_and_no_pure_wheel(
    checkout: Path, tmp_path: Path
) -> None:
    done = pip_wheel(checkout, tmp_path / "wheels", CFLAGS="-march=no-such-machine")
    assert done.returncode != 0
    assert "no-such-machine" in done.stdout + done.stderr
    assert not list(tmp_path.glob("wheels/*.whl"))
