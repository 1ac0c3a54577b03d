"""Rows come in any form, held rows stay out, and every place in a stream is found again."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ozaki.scores.learned import data_source, loader_passes
from ozaki.scores.learned.data_source import REFERENCE, Source, open_source

DATA = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))


def opened(data: Any, held_out: float = 0.1, seed: int = 0) -> Source:
    return open_source(data, held_out, torch.Generator().manual_seed(seed))


def drawn(source: Source, count: int = 30, size: int = 32, **options: Any) -> list[Tensor]:
    batches = source.batches(size, torch.Generator().manual_seed(7), lambda x: x, **options)
    return [batches.next() for _ in range(count)]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def contents(*rows: Tensor) -> set[bytes]:
    return {row.view(torch.uint8).numpy().tobytes() for part in rows for row in part}


class Noisy(Dataset[Tensor]):
    """Augmented by all three global random states."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        noise = torch.rand(2) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return index + noise


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.randn(50, 2, 2)


class RowByRow(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(DATA)


class Uneven(IterableDataset[Tensor]):
    """Items of 1 to 5 rows."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(DATA.split([1, 5, 2, 3, 4] * 20))


class Once(IterableDataset[Tensor]):
    def __init__(self, rows: Tensor):
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Tensor]:
        return self.rows


class Restless(IterableDataset[Tensor]):
    """Its random state is its own, and so no replay can find it."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randn(200, 2, generator=self.generator))


def loader(data: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, **options)


MEMORY = {
    "tensor": lambda: DATA,
    "array": lambda: DATA.numpy(),
    "frame": lambda: pd.DataFrame(DATA.numpy()),
}
STREAMS: dict[str, Callable[[], Any]] = {
    "in order": lambda: loader(DATA, batch_size=7),
    "shuffled": lambda: loader(DATA, batch_size=7, shuffle=True),
    "tuples": lambda: loader(TensorDataset(DATA, torch.arange(300)), batch_size=64),
    "own generator": lambda: loader(
        DATA, batch_size=9, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "sampler's generator": lambda: loader(
        DATA, batch_size=9, sampler=RandomSampler(DATA, generator=torch.Generator())
    ),
    "weighted": lambda: loader(
        DATA, batch_size=9, sampler=WeightedRandomSampler(torch.ones(300), 300)
    ),
    "noisy": lambda: loader(Noisy(), batch_size=3, shuffle=True),
    "uneven": lambda: loader(Uneven(), batch_size=None),
    "endless": lambda: loader(Endless(), batch_size=None),
    "a dataset": lambda: TensorDataset(DATA),
    "an iterable dataset": lambda: RowByRow(),
    "double": lambda: loader(DATA.double(), batch_size=7),
    "half": lambda: loader(DATA.bfloat16(), batch_size=7),
}
WORKERS: dict[str, Callable[[], Any]] = {
    "workers": lambda: loader(Noisy(), batch_size=3, shuffle=True, num_workers=2),
    "persistent": lambda: loader(
        Noisy(), batch_size=3, shuffle=True, num_workers=2, persistent_workers=True
    ),
}


@pytest.mark.parametrize("form", MEMORY)
def test_memory_is_split_at_random_and_drawn_from(form: str):
    source = opened(MEMORY[form]())
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(source.held, DATA[order[:30]])
    assert torch.equal(source.train, DATA[order[30:]])
    assert source.event_shape == (3,)
    generator = torch.Generator().manual_seed(7)
    calls = []
    batches = source.batches(16, generator, lambda x: calls.append(len(x)) or 2 * x)
    for _ in range(3):
        batches.next()
    assert calls == [270]  # prepared once
    saved, state = generator.get_state(), batches.state()
    expected = [batches.next() for _ in range(3)]
    generator.set_state(saved)
    again = source.batches(16, generator, lambda x: 2 * x)
    again.restore(json.loads(json.dumps(state)))
    assert equal(expected, [again.next() for _ in range(3)])
    assert contents(*expected) <= contents(2 * source.train)


@pytest.mark.filterwarnings("ignore:data have")
@pytest.mark.parametrize("form", [*STREAMS, *WORKERS])
def test_every_place_in_a_stream_is_found_again(form: str):
    make = (STREAMS | WORKERS)[form]
    steps = 4 if form in WORKERS else 25
    source = opened(make())
    batches = source.batches(16, torch.Generator(), lambda x: x)
    states, rows = [batches.state()], []
    for _ in range(steps):
        torch.randn(3), random.random(), np.random.rand()  # noqa: NPY002 the trainer's own draws
        rows.append(batches.next())
        states.append(json.loads(json.dumps(batches.state())))
    assert {len(x) for x in rows} == {16}
    assert not any(contents(x) & contents(source.held) for x in rows)
    for step in (0, 1, steps // 2, steps - 1):
        fresh = opened(make())  # as another process would
        assert fresh.fingerprint == source.fingerprint
        assert torch.equal(fresh.train, source.train)
        again = fresh.batches(16, torch.Generator(), lambda x: x)
        again.restore(states[step])
        assert again.state() == states[step]
        assert equal([again.next() for _ in range(min(5, steps - step))], rows[step : step + 5])


@pytest.mark.filterwarnings("ignore:data have")
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    batch=st.integers(1, 40),
    stops=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    shuffle=st.booleans(),
)
def test_restoring_again_and_again_changes_nothing(
    sizes: list[int], batch: int, stops: list[int], shuffle: bool
):
    parts = [torch.randn(n, 2) for n in sizes]

    def fresh() -> Any:
        data = loader(parts, batch_size=None, shuffle=shuffle)
        return opened(data).batches(batch, torch.Generator(), lambda x: x)

    straight = fresh()
    expected = [straight.next() for _ in range(sum(stops))]
    found, state = [], fresh().state()
    for stop in stops:
        batches = fresh()
        batches.restore(json.loads(json.dumps(state)))
        found += [batches.next() for _ in range(stop)]
        state = batches.state()
    assert equal(expected, found)
    assert state == straight.state()


@pytest.mark.parametrize("form", ["in order", "shuffled", "uneven", "a dataset"])
def test_an_epoch_is_every_row_once_but_those_held(form: str):
    source = opened(STREAMS[form]())
    assert len(source.held) == 30
    assert contents(source.held, source.train) == contents(DATA)
    rows = torch.cat(drawn(source, count=6, size=90))  # two epochs of 270 rows
    for epoch in rows.split(270):
        assert len(contents(epoch)) == 270
        assert contents(epoch) == contents(DATA) - contents(source.held)
    shuffled = not torch.equal(rows[:270], rows[270:])
    assert shuffled == (form in ("shuffled", "a dataset"))


@pytest.mark.filterwarnings("ignore:data have")
def test_the_pass_and_not_the_global_state_decides():
    torch.manual_seed(1)
    one = drawn(opened(STREAMS["noisy"]()))
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])  # noqa: NPY002
    assert equal(one, drawn(opened(STREAMS["noisy"]())))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    assert not equal(one, drawn(opened(STREAMS["noisy"](), seed=1)))


def test_a_failing_loader_leaves_the_global_state(generator: torch.Generator):
    class Failing(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield torch.rand(4, 2)
            raise OSError("the file is gone")

    state = torch.get_rng_state()
    with pytest.raises(OSError, match="the file is gone"):
        open_source(loader(Failing(), batch_size=None), 0.1, generator)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_batch_is_given_again():
    def interrupt(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    source, prepares = opened(STREAMS["uneven"]()), [lambda x: x, interrupt, lambda x: x]
    expected = drawn(source, 2)
    batches = source.batches(32, torch.Generator(), lambda x: prepares.pop(0)(x))
    batches.next()
    with pytest.raises(KeyboardInterrupt):
        batches.next()
    batches.restore(batches.state())
    assert torch.equal(batches.next(), expected[1])


@pytest.mark.parametrize("form", ["tensor", "shuffled"])
def test_shares_make_up_the_batch(form: str):
    make = (MEMORY | STREAMS)[form]
    whole = drawn(opened(make()))
    shares = [drawn(opened(make()), share=(rank, 3)) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        joined = torch.empty_like(batch)
        for rank, part in enumerate(parts):
            joined[rank::3] = part
        assert torch.equal(joined, batch)


def test_of_a_long_stream_the_reference_is_kept():
    read = 0

    class Counting(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            nonlocal read
            for i in itertools.count():
                read += 1
                yield torch.full((100, 1), float(i)) + torch.arange(100.0)[:, None] / 128

    source = opened(loader(Counting(), batch_size=None), held_out=0.1)
    assert (len(source.train), len(source.held)) == (REFERENCE, round(0.1 * REFERENCE))
    assert read == -(-(REFERENCE + round(0.1 * REFERENCE)) // 100)
    read = 0
    batches = source.batches(256, torch.Generator(), lambda x: x)
    rows = torch.cat([batches.next() for _ in range(40)])
    assert torch.equal(rows[:REFERENCE], source.train)  # the first pass begins at the start
    assert read == -(-(40 * 256 + len(source.held)) // 100)  # nothing is read ahead


def test_of_rounded_rows_as_many_are_left_out_as_were_held():
    data = torch.arange(600).remainder(6).float().reshape(-1, 1)
    source = opened(loader(data, batch_size=50, shuffle=True))
    expected = torch.bincount(data.long().flatten()) - torch.bincount(source.held.long().flatten())
    for epoch in torch.cat(drawn(source, 6, 180)).split(540):
        assert torch.equal(torch.bincount(epoch.long().flatten()), expected)
        assert int(expected.min()) > 50


def test_with_replacement_no_copy_of_a_held_row_returns():
    data = torch.arange(200.0).reshape(-1, 1)
    sampler = RandomSampler(data, replacement=True, num_samples=2000)  # pyright: ignore
    source = opened(loader(data, batch_size=50, sampler=sampler), held_out=0.01)
    assert not contents(*drawn(source)) & contents(source.held)


def test_of_few_rows_a_warning_is_given():
    for data in (DATA[:20], loader(DATA[:20])):
        with pytest.warns(UserWarning, match="20 rows only"):
            opened(data)


@pytest.mark.filterwarnings("ignore:data have")
def test_a_small_loader_keeps_a_row_for_each_side():
    for held_out in (0.01, 0.99):
        source = opened(loader(DATA[:2]), held_out=held_out)
        assert (len(source.held), len(source.train)) == (1, 1)
        assert drawn(source, 2, 3)[1].unique(dim=0).equal(source.train)
        assert len(opened(DATA[:2], held_out=held_out).train) == 1


def test_fingerprints_tell_data_apart():
    forms = [
        DATA,
        DATA.double(),
        DATA.reshape(300, 3, 1),
        DATA.reshape(100, 9),
        DATA + torch.eye(300, 3) * 1e-6,
        DATA.flip(0),
    ]
    assert len({opened(form).fingerprint for form in forms}) == len(forms)
    assert len({opened(loader(f, batch_size=9)).fingerprint for f in forms[:4]}) == 4
    assert opened(DATA).fingerprint == opened(DATA.clone()).fingerprint
    assert opened(DATA).fingerprint == opened(DATA, seed=3).fingerprint
    assert opened(DATA.bfloat16()).train.dtype == torch.bfloat16


def test_a_stream_that_does_not_repeat_itself_is_not_resumed():
    batches = opened(loader(Restless(), batch_size=10)).batches(30, torch.Generator(), lambda x: x)
    for _ in range(20):
        batches.next()
    state = batches.state()
    assert state["pass"] > 0
    again = opened(loader(Restless(), batch_size=10)).batches(30, torch.Generator(), lambda x: x)
    with pytest.raises(ValueError, match=r"did not repeat themselves.*same data"):
        again.restore(state)
    with pytest.raises(ValueError, match="did not repeat themselves"):
        again.restore(state | {"items": 10_000})


def test_the_state_of_other_data_is_refused():
    memory = opened(DATA).batches(4, torch.Generator(), lambda x: x)
    stream = opened(STREAMS["in order"]()).batches(4, torch.Generator(), lambda x: x)
    with pytest.raises(ValueError, match=r"state is of a stream, but data are in memory"):
        memory.restore(stream.state())
    with pytest.raises(ValueError, match=r"state is of data in memory, but data are a stream"):
        stream.restore(memory.state())


def test_a_stream_that_ends_for_good_is_named():
    with pytest.raises(ValueError, match=r"ended early: after 300 rows, pass 0.*gave 0.*__iter__"):
        drawn(opened(loader(Once(DATA), batch_size=10)))
    long = torch.arange(20_000.0).reshape(-1, 1)
    source = opened(loader(Once(long), batch_size=100))
    with pytest.raises(ValueError, match=r"ended early: after 20000 rows, pass 1.*gave 0"):
        drawn(source, 1000)


def items(*parts: Any) -> DataLoader[Any]:
    return loader(list(parts), batch_size=None)


GOOD = torch.zeros(2, 3)
BAD = {
    r"items are tensors .* item 1 of a pass was a dict": items(GOOD, {"x": GOOD}),
    r"item 0 of a pass was a list of dict": items([{"x": GOOD}]),
    r"item 0 of a pass was a list": items(()),
    r"item 0 of a pass was a str": items("x"),
    r"floating-point, but item 1 of a pass had dtype torch.int64": items(GOOD, GOOD.long()),
    r"had dtype torch.complex64": items(GOOD.to(torch.complex64)),
    r"rows of \(4,\) and torch.float32": items(GOOD, torch.zeros(2, 4)),
    r"one shape and dtype, \(3,\).*torch.float64": items(GOOD, GOOD.double()),
    r"item 2 of a pass\) must be finite": items(GOOD, GOOD, GOOD / 0),
    r"not empty, but item 1 of a pass had shape \(0, 3\)": items(GOOD, GOOD[:0]),
    r"had shape \(2, 0\)": items(GOOD[:, :0]),
    r"had shape \(3,\); give the DataLoader a batch_size": items(*GOOD),
    r"at least 2 rows, but the DataLoader gave none": items(),
    r"at least 2 rows, but had 1": items(GOOD[:1]),
    r"in_order=False": loader(GOOD, num_workers=2, in_order=False),
    r"DistributedSampler; leave it out": loader(
        GOOD,
        sampler=DistributedSampler(GOOD, num_replicas=2, rank=0),  # pyright: ignore
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_streams_are_named(message: str):
    with pytest.raises(ValueError, match=message):
        opened(BAD[message])


def test_bad_items_are_found_after_the_reference():
    parts = [torch.randn(5000, 2) for _ in range(3)]
    source = opened(items(*parts, torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"item 3 of a pass had rows of \(3,\)"):
        drawn(source, 1000)


def test_no_more_is_alive_than_the_reference_a_batch_and_items(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data_source, "REFERENCE", 64)
    alive: set[int] = set()
    most = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    class Many(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            nonlocal most
            for _ in range(200):
                item = torch.randn(16, 2).as_subclass(Counted)
                alive.add(id(item))
                most = max(most, len(alive))
                yield item

    drawn(opened(loader(Many(), batch_size=None)), count=300)
    assert most <= 4  # of 32 rows a batch, two or three items of 16, and the next


def test_seeds_of_passes_differ():
    reader = loader_passes.Reader(loader(DATA, batch_size=300, shuffle=True), 5)
    one, two, again = (reader.begin(n).next() for n in (0, 1, 0))
    assert one is not None and two is not None and again is not None
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
