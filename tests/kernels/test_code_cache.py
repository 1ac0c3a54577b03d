"""Compiled code is kept on disk, is run only as it was written, and only if nobody else could."""

import json
import os
import subprocess
import sys

import pytest

from ozaki.kernels import code_cache
from ozaki.kernels.code_cache import CacheError

SOURCE = 'extern "C" int answer() { return 42; }\n'
pytestmark = pytest.mark.skipif(code_cache.compiler() is None, reason="no compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and how often the compiler was called."""
    calls = []
    real = subprocess.run

    def run(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setenv("OZAKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(code_cache.subprocess, "run", run)
    return calls


def keep(text=SOURCE, notes=None):
    command = [code_cache.compiler(), "-shared", "-fPIC"]
    return code_cache.store("k" * 64, text, notes or {"a": 1}, command, [])


def test_what_was_compiled_is_found_again(cache):
    library, notes = keep()
    assert code_cache.load("k" * 64) == (library, notes)
    assert code_cache.load("l" * 64) is None
    assert len(cache) == 1
    assert not [p for p in library.parent.iterdir() if p.name.startswith(".")]


def test_what_cannot_be_compiled_is_remembered(cache):
    assert keep(None, {"unsupported": "sort"}) == (None, {"unsupported": "sort"})
    assert code_cache.load("k" * 64) == (None, {"unsupported": "sort"})


@pytest.mark.parametrize("spoil", ["library", "half", "gone", "entry", "name", "binary"])
def test_a_spoiled_cache_is_made_anew(cache, spoil):
    library, _ = keep()
    entry = library.parent / ("k" * 64 + ".json")
    if spoil == "library":
        library.write_bytes(library.read_bytes()[:-1] + b"x")
    elif spoil == "half":
        library.write_bytes(library.read_bytes()[:100])
    elif spoil == "gone":
        library.unlink()
    elif spoil == "entry":
        entry.write_text(entry.read_text()[:20])
    elif spoil == "name":
        entry.write_text(json.dumps({"library": "../../evil", "notes": {}}))
    else:
        entry.write_bytes(b"\xff\xfe")
    assert code_cache.load("k" * 64) is None
    assert code_cache.load("k" * 64) is None
    keep()
    assert code_cache.load("k" * 64) == (library, {"a": 1})


def test_a_folder_that_was_named_and_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OZAKI_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="OZAKI_CACHE must name a folder that can be written, but"):
        keep()


def test_without_a_home_code_is_compiled_for_the_process(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("OZAKI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.warns(UserWarning, match="compiled code cannot be kept in .*; set OZAKI_CACHE"):
        library, _ = keep()
    assert library.exists()
    assert tmp_path not in library.parents


def test_a_folder_that_others_can_write_is_refused(cache):
    library, _ = keep()
    library.parent.chmod(0o777)
    for use in (keep, lambda: code_cache.load("k" * 64)):
        with pytest.raises(CacheError, match="can be written by others"):
            use()


def test_a_compiler_that_refuses_says_why(cache):
    with pytest.raises(RuntimeError, match=r"refused a loop: .*error"):
        keep("this is no C++")
    assert code_cache.load("k" * 64) is None


def test_a_key_depends_on_everything(monkeypatch):
    path = code_cache.compiler()
    whole = ["code", [(3,)], 1, ["-O3"], "own", path]
    keys = {code_cache.key(*whole)}
    for i, other in enumerate(["code2", [(4,)], 2, ["-O2"], "own2"]):
        keys.add(code_cache.key(*whole[:i], other, *whole[i + 1 :]))
    monkeypatch.setattr(code_cache, "_machine", lambda: ("another",))
    keys.add(code_cache.key(*whole))
    monkeypatch.setattr(code_cache, "_compiler_version", lambda path: "another")
    keys.add(code_cache.key(*whole))
    assert len(keys) == 8


@pytest.mark.thorough
def test_two_processes_at_once(tmp_path):
    program = (
        "import ctypes\nfrom ozaki.kernels import code_cache\n"
        f"for i in range(20):\n"
        f"    code_cache.store('k' * 64, {SOURCE!r}, {{}}, "
        "[code_cache.compiler(), '-shared', '-fPIC'], [])\n"
        "    library, _ = code_cache.load('k' * 64)\n"
        "    assert ctypes.CDLL(str(library)).answer() == 42\n"
    )
    env = os.environ | {"OZAKI_CACHE": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", program], env=env) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
