"""Compile the native kernels on first use, once for each machine, compiler and version of the sources.

The library lands in `home()/kernels/KEY/`, or in QCORE_KERNELS/KEY if that is set. KEY is a digest of the sources, the flags and the
compiler's own version, so that a changed source, another compiler or another architecture never meets a stale library. A lock lets
concurrent processes build once.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from qcore.base.errors import UnavailableError
from qcore.base.home import build_folder, home

SOURCES = Path(__file__).parent / "native"
LIBRARY = "qcore_kernels.so"
COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
AVX2 = (
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-fno-tree-reassoc",
)  # reassociated sums need more registers than there are
AVX512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512vnni",
    "-Wno-maybe-uninitialized",
)  # GCC's own header warns
INSTRUCTIONS = {  # by folder of sources: the flags for files that are named after an instruction set
    "x86": {"avx2": AVX2, "avxvnni": (*AVX2, "-mavxvnni"), "avx512": (*AVX2, *AVX512)},
    "arm": {"neon": (), "dotprod": ("-march=armv8.2-a+dotprod",)},
}
FAMILIES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
EMULATED = (
    "-DQCORE_EMULATE",
    "-O1",
    "-Wno-psabi",
)  # what SIMDe makes of an instruction set is long, and -O3 takes minutes to read it
_TIMEOUT = 600  # seconds for one source; a hanging compiler must not hang the user


def build(extra: tuple[str, ...] | None = None, *, emulate: bool = False) -> Path:
    """Return the path of the compiled library, compiling it first if need be (half a minute of one core).

    `extra` flags, such as a sanitizer's, are added to each step; by default those in the variable QCORE_KERNEL_FLAGS. `emulate` is for
    tests: the functions of every instruction set, of other processors too, in terms of AVX2 through the headers of SIMDe, which must be
    installed. Raises `UnavailableError` if nothing is written for this machine, if there is no C++ compiler, or if it fails; the message
    says what to do.
    """
    family = FAMILIES.get(platform.machine().lower())
    if family is None:
        raise UnavailableError(
            f"The native kernels are for x86-64 and 64-bit ARM processors, and this is {platform.machine()}."
        )
    extra = tuple(os.environ.get("QCORE_KERNEL_FLAGS", "").split()) if extra is None else extra
    compiler, version = _compiler()
    flags = {source: _flags(source, family, extra, emulate) for source in sorted(SOURCES.rglob("*.cpp"))}
    used = {source: given for source, given in flags.items() if given is not None}
    digest = hashlib.sha256(
        f"{version}\0{COMMON}{[(source.name, given) for source, given in used.items()]}".encode()
    )
    for source in sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h")):
        digest.update(source.relative_to(SOURCES).as_posix().encode() + source.read_bytes())

    def compile_all(folder: Path) -> None:
        largest = sorted(used, key=lambda source: -source.stat().st_size)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(lambda source: _compile(compiler, source, folder, used[source]), largest))
        _run(compiler, *COMMON, *extra, "-shared", "-o", folder / LIBRARY, *objects)
        for path in objects:
            path.unlink()

    folder = Path(os.environ.get("QCORE_KERNELS") or home() / "kernels")
    return build_folder(folder / digest.hexdigest()[:20], compile_all) / LIBRARY


def _flags(source: Path, family: str, extra: tuple[str, ...], emulate: bool) -> tuple[str, ...] | None:
    """Return the flags of one source, or None if it is for another processor family (`common/` is for all of them).

    Only a file whose name ends in an instruction set may use it: the others run before that set is known to exist.
    """
    instructions = source.stem.rpartition("_")[2]
    if emulate:
        return (*AVX2, *extra) if instructions == "avx2" else (*AVX2, *EMULATED, *extra)
    if source.parent.name not in ("common", family):
        return None
    return (*INSTRUCTIONS[family].get(instructions, ()), *extra)


def _compile(compiler: str, source: Path, folder: Path, flags: tuple[str, ...]) -> Path:
    """One object file. Flags of an instruction set that the compiler is too old for are left out; then the file holds nothing."""
    target = folder / f"{source.parent.name}-{source.stem}.o"
    if not _takes(compiler, flags):
        flags = tuple(flag for flag in flags if flag in AVX2 or not flag.startswith("-m"))
    _run(compiler, *COMMON, *flags, "-I", SOURCES, "-c", source, "-o", target)
    return target


def _takes(compiler: str, flags: tuple[str, ...]) -> bool:
    command = [compiler, *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"The C++ compiler {compiler} does not run: {error}.") from error


def _run(*command) -> None:
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"The native kernels cannot be compiled: {error}.") from error
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if "error" in line.lower()
        ] or done.stderr.splitlines()
        raise UnavailableError(
            f"The native kernels cannot be compiled: {lines[0] if lines else 'the compiler gave no reason'}."
        )


@cache
def _compiler() -> tuple[str, str]:
    """The compiler's path, and the text that tells it from others: its version and target."""
    wanted = os.environ.get("CXX")
    path = next(
        (
            found
            for name in ([wanted] if wanted else ["g++", "c++", "clang++"])
            if (found := shutil.which(name))
        ),
        None,
    )
    if path is None:
        raise UnavailableError(
            "The native kernels need a C++ compiler, and none was found. Install g++, or set CXX to its path."
        )
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"The C++ compiler {path} does not run: {error}.") from error
    return path, f"{path}\n{done.stdout}\n{platform.machine()}"


if __name__ == "__main__":  # for set-up, so that the first run does not wait for the compiler
    try:
        print(f"The native kernels are at {build()}.")
    except UnavailableError as error:
        raise SystemExit(str(error)) from error
