"""A checkpoint is read as it was written, or refused; a write leaves the old one or the new one."""

import errno
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ozaki.io import checkpoint

TENSORS = {
    "bytes": torch.arange(7, dtype=torch.uint8),
    "count": torch.tensor(2**62),
    "empty": torch.empty(0, 3),
    "half": torch.randn(3).bfloat16(),
    "flags": torch.tensor([True, False]),
    "matrix": torch.randn(2, 3, dtype=torch.float64),
    "wild": torch.tensor([math.inf, -math.inf, math.nan, -0.0]),
}
SETTINGS = {"learning_rate": 0.1, "sigma": "auto", "rank": None, "sizes": [1, 2], "fused": True}
STATE = {"step": 3, "losses": [math.inf, -math.inf, {"deep": 1e-300}], "text": 'π"\\\ud800'}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        t.dtype == two[k].dtype
        and t.shape == two[k].shape
        and safetensors.torch.save({"t": t.contiguous()})
        == safetensors.torch.save({"t": two[k].contiguous()})
        for k, t in one.items()
    )


def holds(folder: Path, tensors: Any = TENSORS, settings: Any = SETTINGS, state: Any = STATE):
    found = checkpoint.read(folder)
    assert found is not None
    return same(found[0], tensors) and found[1] == settings and found[2] == state


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_was_written_is_read(tmp_path: Path):
    folder = tmp_path / "new" / "run"
    assert checkpoint.read(folder) is None
    assert checkpoint.write(folder, TENSORS, SETTINGS, STATE) == folder / checkpoint.FILE
    assert holds(folder)
    checkpoint.write(folder, {}, {}, {})
    assert holds(folder, {}, {}, {})
    assert names(folder) == [checkpoint.FILE]


def test_random_states_and_optimisers_come_back(tmp_path: Path):
    net = nn.Linear(3, 3)
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    generator = torch.Generator().manual_seed(5)
    tensors = {"random": generator.get_state(), "tied": net.weight, "again": net.weight}
    tensors["part"] = net.weight[:, 1]
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"{i}.{name}": t for name, t in moments.items()}
    expected = torch.rand(3, generator=generator)
    checkpoint.write(tmp_path, tensors, {}, {})
    found = checkpoint.read(tmp_path)
    assert found is not None and same(found[0], tensors)
    assert torch.equal(
        torch.rand(3, generator=torch.Generator().set_state(found[0]["random"])), expected
    )


@pytest.mark.filterwarnings("error")
def test_what_was_read_is_the_readers_own(tmp_path: Path):
    checkpoint.write(tmp_path, TENSORS, {}, {})
    found = checkpoint.read(tmp_path)
    assert found is not None
    for tensor in found[0].values():
        tensor.zero_()
    assert holds(tmp_path, TENSORS, {}, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(state=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_state_survives(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]):
    folder = tmp_path_factory.mktemp("run")
    checkpoint.write(folder, {}, state, state)
    found = checkpoint.read(folder)
    assert found is not None
    for part in found[1:]:
        assert part == state
        assert repr(part) == repr(state)  # which tells 1 from 1.0 and True, and 0.0 from -0.0
    checkpoint.match(folder, found[1], state)


def test_a_nan_survives(tmp_path: Path):
    checkpoint.write(tmp_path, {}, {"a": math.nan}, {"b": [math.nan]})
    found = checkpoint.read(tmp_path)
    assert found is not None
    assert math.isnan(found[1]["a"]) and math.isnan(found[2]["b"][0])
    checkpoint.match(tmp_path, found[1], {"a": math.nan})


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, b"x", object(), {"__float__": "inf"}, 1j])
def test_what_json_would_change_is_refused(tmp_path: Path, value: Any):
    with pytest.raises(ValueError, match="strings, numbers, None"):
        checkpoint.write(tmp_path, {}, {}, {"deep": [value]})
    assert names(tmp_path) == []


def damaged(raw: bytes):
    """Every length, and every byte with one bit flipped, zeroed, and inverted."""
    chance = random.Random(0)
    for i in range(len(raw)):
        yield raw[:i]
        for byte in {raw[i] ^ 1 << chance.randrange(8), 0, raw[i] ^ 255} - {raw[i]}:
            yield raw[:i] + bytes([byte]) + raw[i + 1 :]


def test_damage_is_refused_and_never_read_as_something_else(tmp_path: Path):
    tensors = {"a": torch.arange(3.0), "b": torch.tensor(7)}
    settings, state = {"rate": 0.25}, {"step": 12}
    path = checkpoint.write(tmp_path, tensors, settings, state)
    refused = 0
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            assert holds(tmp_path, tensors, settings, state)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "remove it" in str(error)
    assert refused > 1000


def foreign(header: dict[str, Any], content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def signed(text: str) -> bytes:
    signature = checkpoint._digest(text, {})
    return foreign({"__metadata__": {checkpoint.FORMAT: text, "sha256": signature}})


HUGE = {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}
PLACE = {"data_offsets": [0, 8]}
FOREIGN = {
    "nothing": b"",
    "text": b"a thesis\n" * 100,
    "zeros": bytes(1000),
    "a pickle": b"\x80\x02cos\nsystem\n(S'false'\ntR.",
    "no header": foreign({}),
    "a header without end": struct.pack("<Q", 2**62) + b"{}",
    "huge": foreign({"a": HUGE}, bytes(8)),
    "huge, of few bytes": foreign({"a": HUGE | PLACE}, bytes(8)),
    "a type that torch lacks": foreign(
        {"a": HUGE | {"dtype": "F4", "shape": [16]} | PLACE}, bytes(8)
    ),
    "other tensors": safetensors.torch.save({"a": torch.ones(2)}, {"format": "pt"}),
    "not JSON": signed("{"),
    "a list": signed("[]"),
    "deep": signed("[" * 100_000),
    "lists within": signed(
        json.dumps({"format": checkpoint.FORMAT, "version": 1, "settings": [1], "state": []})
    ),
    "a number that is none": signed(
        json.dumps(
            {
                "format": checkpoint.FORMAT,
                "version": 1,
                "settings": {"a": {"__float__": "import os"}},
                "state": {},
            }
        )
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(tmp_path: Path, kind: str):
    path = tmp_path / checkpoint.FILE
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors .*remove it to begin anew"):
        checkpoint.read(tmp_path)
    assert path.read_bytes() == FOREIGN[kind]


def test_a_later_version_is_named(tmp_path: Path):
    text = json.dumps({"format": checkpoint.FORMAT, "version": 9, "settings": {}, "state": {}})
    (tmp_path / checkpoint.FILE).write_bytes(signed(text))
    with pytest.raises(ValueError, match=r"must be of version 1, but was of 9; .*release"):
        checkpoint.read(tmp_path)


def test_every_setting_that_differs_is_named(tmp_path: Path):
    was = {"learning_rate": 0.006, "sigma": "auto", "sizes": [1, 2], "gone": 1, "none": None}
    now = {"learning_rate": 0.01, "sigma": "auto", "sizes": (1, 3), "fresh": math.inf}
    with pytest.raises(ValueError) as caught:
        checkpoint.match(tmp_path, was, now)
    message = str(caught.value)
    for part in (
        "learning_rate was 0.006 in the checkpoint and is 0.01 now",
        "sizes was [1, 2] in the checkpoint and is [1, 3] now",
        "gone was 1 in the checkpoint and is not there now",
        "none was None in the checkpoint and is not there now",
        "fresh was not there in the checkpoint and is inf now",
        "same settings, or choose another folder",
        str(tmp_path),
    ):
        assert part in message
    assert "sigma" not in message
    checkpoint.match(tmp_path, was, dict(reversed(was.items())) | {"sizes": (1, 2)})


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("target", ["pathlib.Path.write_bytes", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
):
    checkpoint.write(tmp_path, TENSORS, SETTINGS, STATE)
    with monkeypatch.context() as patch:
        patch.setattr(target, no_space)
        with pytest.raises(OSError, match=r"safetensors could not .*No space.*make room") as caught:
            checkpoint.write(tmp_path, {}, {}, {})
    assert caught.value.errno == errno.ENOSPC
    assert holds(tmp_path)
    assert names(tmp_path) == [checkpoint.FILE]


LIMITED = """
import resource, sys, torch
from ozaki.io import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.write(sys.argv[1], {"a": torch.zeros(100_000)}, {}, {})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system limits no files")
def test_a_write_that_the_system_stops_leaves_the_old_checkpoint(tmp_path: Path):
    checkpoint.write(tmp_path, TENSORS, SETTINGS, STATE)
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "could not be written" in found.stdout and "File too large" in found.stdout
    assert holds(tmp_path)
    assert names(tmp_path) == [checkpoint.FILE]


def write_without_end(folder: str, first: int) -> None:
    step = first
    while True:
        step += 1
        tensors = {"a": torch.full((50_000,), float(step)), "b": torch.tensor(step)}
        checkpoint.write(folder, tensors, {}, {"step": step})


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork server")
def test_killed_writes_leave_a_whole_checkpoint(tmp_path: Path):
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance, step, swept, seen = random.Random(0), 0, 0, set()
    for _ in range(25):
        writer = context.Process(target=write_without_end, args=(str(tmp_path), step))
        writer.start()
        limit = time.monotonic() + 60
        while (found := checkpoint.read(tmp_path)) is None or found[2]["step"] <= step:
            assert writer.is_alive() and time.monotonic() < limit
        time.sleep(chance.uniform(0, 0.03))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = checkpoint.read(tmp_path)
        assert found is not None
        step = found[2]["step"]
        assert int(found[0]["b"]) == step and bool((found[0]["a"] == step).all())
        swept += len(checkpoint.clean(tmp_path))
        assert names(tmp_path) == [checkpoint.FILE]
        seen.add(step)
    assert len(seen) == 25
    assert swept > 0  # some were killed while they wrote
