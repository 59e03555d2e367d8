"""Compile the native kernels on first use, once per machine, compiler and version of the sources.

    python -m qcore.kernels.build

The library is written to KEY in the folder QCORE_KERNELS, or in `home()/kernels` if that is not set. KEY is a
digest of the sources, the flags, and the compiler's version, so a stale library is never loaded. A lock makes
concurrent processes build once.

A machine without a compiler, such as a container that was made in two stages, loads a library that lies there
and was compiled from the same sources with the same flags.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from qcore.base.cpu import default_threads
from qcore.base.errors import UnavailableError
from qcore.base.home import build_folder, home

SOURCES = Path(__file__).parent / "native"
LIBRARY, MADE_OF = "qcore_kernels.so", "made_of.txt"  # the second holds the digest of sources and flags
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
# Reassociated sums would need more registers than AVX2 has.
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-fno-tree-reassoc")
# GCC 12 warns about uninitialized values in its own AVX-512 header.
AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
    "-Wno-maybe-uninitialized",
)
# Folder of sources -> suffix of file names -> flags.
INSTRUCTIONS = {
    "x86": {"avx2": AVX2, "avxvnni": (*AVX2, "-mavxvnni"), "avx512": (*AVX2, *AVX512)},
    "arm": {"neon": (), "dotprod": ("-march=armv8.2-a+dotprod",)},
}
FAMILIES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
# SIMDe expands every intrinsic into long code, which takes minutes to compile with -O3.
EMULATED = ("-DQCORE_EMULATE", "-O1", "-Wno-psabi")
_TIMEOUT = 600  # seconds per source file


def build(extra: tuple[str, ...] | None = None, *, emulate: bool = False) -> Path:
    """Return the path of the compiled library, compiling it first if necessary (half a minute on one core).

    `extra` flags, such as a sanitizer's, are added to every compiler call; the default is the environment
    variable QCORE_KERNEL_FLAGS. With `emulate`, which tests use, the library holds the functions of every
    instruction set, expressed in AVX2 by the headers of SIMDe.

    Raise `UnavailableError` if this processor is not supported, or if the compiler is missing or fails.
    """
    family = FAMILIES.get(platform.machine().lower())
    if family is None:
        raise UnavailableError(
            "The native kernels support x86-64 and 64-bit ARM processors, "
            f"but this machine is {platform.machine()}."
        )
    extra = tuple(os.environ.get("QCORE_KERNEL_FLAGS", "").split()) if extra is None else extra
    flags = {source: _flags(source, family, extra, emulate) for source in sorted(SOURCES.rglob("*.cpp"))}
    used = {source: given for source, given in flags.items() if given is not None}
    digest = hashlib.sha256(f"{COMMON}{[(source.name, given) for source, given in used.items()]}".encode())
    for source in sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h")):
        digest.update(source.relative_to(SOURCES).as_posix().encode() + source.read_bytes())
    made_of = digest.hexdigest()
    root = Path(os.environ.get("QCORE_KERNELS") or home() / "kernels")
    try:
        compiler, version = _compiler()
    except UnavailableError:
        if not os.environ.get("CXX") and (found := _compiled_before(root, made_of)):
            return found
        raise

    def compile_all(folder: Path) -> None:
        largest = sorted(used, key=lambda source: -source.stat().st_size)
        with ThreadPoolExecutor(default_threads()) as pool:
            objects = list(pool.map(lambda source: _compile(compiler, source, folder, used[source]), largest))
        _run(compiler, *COMMON, *extra, "-shared", "-o", folder / LIBRARY, *objects)
        for path in objects:
            path.unlink()
        (folder / MADE_OF).write_text(made_of)

    key = hashlib.sha256(f"{version}\0{made_of}".encode()).hexdigest()[:20]
    return build_folder(root / key, compile_all) / LIBRARY


def _compiled_before(root: Path, made_of: str) -> Path | None:
    """Return the library below `root` whose sources and flags have the digest `made_of`."""
    for record in root.glob(f"[!.]*/{MADE_OF}"):
        if record.read_text() == made_of:
            return record.parent / LIBRARY
    return None


def _flags(source: Path, family: str, extra: tuple[str, ...], emulate: bool) -> tuple[str, ...] | None:
    """Return the compiler flags of `source`, or None if it belongs to another processor family.

    Only files whose names end in an instruction set may use it: the other files run before the library knows
    which instruction sets the processor has.
    """
    instructions = source.stem.rpartition("_")[2]
    if emulate:
        return (*AVX2, *extra) if instructions == "avx2" else (*AVX2, *EMULATED, *extra)
    if source.parent.name not in ("common", family):
        return None
    return (*INSTRUCTIONS[family].get(instructions, ()), *extra)


def _compile(compiler: str, source: Path, folder: Path, flags: tuple[str, ...]) -> Path:
    """Compile `source` in `folder` and return the object file.

    Flags of an instruction set that the compiler does not know are left out; the file then compiles to
    nothing.
    """
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
    """Return the compiler's path, and a text that identifies it: path, version and processor."""
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


if __name__ == "__main__":  # called by set-up, so that the first run does not wait for the compiler
    try:
        print(f"The native kernels are at {build()}.")
    except UnavailableError as error:
        raise SystemExit(str(error)) from error
