"""Compiled code on disk, so that a second process need not compile.

A file `<key>.json` names a library by the digest of what is in it. A library is written whole
before it is named, and its digest is compared before it is loaded, so that nothing half-written or
spoiled is run; it is compiled anew. Whoever could write in the folder could run code, so that it
must belong to the user alone.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

VARIABLE = "OZAKI_CACHE"
Found = tuple[Path | None, dict[str, Any]]


class CacheError(OSError):
    """The folder of compiled code cannot be used."""


def folder() -> Path:
    """Return the folder of compiled code: of `OZAKI_CACHE`, or the user's folder of caches."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser() / "loops"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ozaki" / "loops"
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return home / "ozaki" / "loops"


def compiler() -> str | None:
    """Return the C++ compiler: that of `CXX`, or the first on the PATH; None where none is."""
    asked = os.environ.get("CXX")
    names = [asked] if asked else ["g++", "clang++", "c++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def key(code: str, kinds: Any, carry: int, flags: Sequence[str], own: str, compiler: str) -> str:
    """Return a digest of everything that a compiled loop depends on.

    Args:
        code: of the graph.
        kinds: shapes and dtypes of its inputs.
        carry: how many of them are carried.
        flags: of the compiler.
        own: the text that writes the C++.
        compiler: its path.
    """
    parts = (code, kinds, carry, list(flags), own, _compiler_version(compiler), _machine())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _compiler_version(path: str) -> str:
    found = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return f"{path} {found.stdout}"


@cache
def _machine() -> tuple[str, ...]:
    """Return what a library's code depends on beside its source."""
    features = ""
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            wanted = ("flags", "Features", "model name", "CPU part")
            features = "".join(sorted({line for line in file if line.startswith(wanted)}))
    capability = torch.backends.cpu.get_cpu_capability()
    libc = "".join(platform.libc_ver())
    return (
        sys.platform,
        platform.machine(),
        platform.processor(),
        features,
        capability,
        libc,
        (torch.__version__),
    )


def load(key: str) -> Found | None:
    """Return the library of a key and its notes, or None where there is none or it is spoiled.

    Raises:
        CacheError: others could write in the folder.
    """
    place = folder()
    try:
        text = (place / f"{key}.json").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    _refuse_others(place)
    try:
        entry = json.loads(text)
        notes, name = entry["notes"], entry["library"]
        if name is None:
            return None, notes
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            return None
        library = place / f"{name}.so"
        if hashlib.sha256(library.read_bytes()).hexdigest() != name:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return library, notes


def store(
    key: str, text: str | None, notes: dict[str, Any], command: list[str], libraries: list[str]
) -> Found:
    """Compile a source, keep the library, and return it; without a source keep the notes alone.

    Raises:
        CacheError: `OZAKI_CACHE` names a folder that cannot be used.
        RuntimeError: the compiler refuses the source.
    """
    place = _writable()
    entry: dict[str, Any] = {"library": None, "notes": notes}
    library = None
    if text is not None:
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as scratch:
            made = _compile(Path(scratch), text, command, libraries)
            name = hashlib.sha256(made.read_bytes()).hexdigest()
            library = place / f"{name}.so"
            os.replace(made, library)
        entry["library"] = name
    temporary = place / f".{uuid.uuid4().hex}"
    temporary.write_text(json.dumps(entry))
    os.replace(temporary, place / f"{key}.json")
    return library, notes


def _compile(scratch: Path, text: str, command: list[str], libraries: list[str]) -> Path:
    source, made = scratch / "loop.cpp", scratch / "loop.so"
    source.write_text(text)
    done = subprocess.run(
        [*command, str(source), "-o", str(made), *libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} refused a loop: {done.stderr.strip()[-2000:]}")
    return made


def _writable() -> Path:
    """Return a folder that can be written: that of the cache, or else one for this process."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_others(place)
        probe = place / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if os.environ.get(VARIABLE):
            raise CacheError(
                error.errno,
                f"{VARIABLE} must name a folder that can be written, but {place} cannot "
                f"({error.strerror or error}); name another, or unset it",
            ) from error
        return _for_this_process(f"{place} ({error.strerror or error})")
    return place


@cache
def _for_this_process(why: str) -> Path:
    """Make a folder that lasts as long as the process, and tell that nothing is kept."""
    warnings.warn(
        f"compiled code cannot be kept in {why}, and is compiled anew by every process; set "
        f"{VARIABLE} to a folder that can be written",
        stacklevel=2,
    )
    made = tempfile.TemporaryDirectory(prefix="ozaki-")
    _KEPT.append(made)
    return Path(made.name)


def _refuse_others(place: Path) -> None:
    """Raise OSError where anyone but the user could put code into the folder."""
    found = place.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            1,
            f"{place} can be written by others, who could put code there; choose another folder"
            f" by {VARIABLE}, or make it yours alone by chmod 700",
        )


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends
