"""Recorded tensor operations, done again, give the bits that the function gives."""

import weakref

import pytest
import torch
from torch import nn
from torch.func import vmap

from ozaki.foundation.recording import recording
from ozaki.foundation.replay import Stale, record, traced
from ozaki.foundation.tracing import tracing

DATA = torch.tensor([1.0, -2.0, 3.0])


def points(seed: int, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_place(x):
    found = torch.zeros_like(x)
    found[:, 0] = x[:, 1]
    part = found[:, 1:]
    part += x[:, :2]
    return (found * 2, part)


def filled(x):
    made = torch.tensor([1.0, 2.0, 3.0])
    made[0] = 5.0  # which would spoil a constant that two evaluations share
    made.mul_(2)
    return (x + made,)


def factorised(x):
    matrix = torch.eye(3, dtype=x.dtype) * x.square().sum(-1)[:, None, None] + 0.1
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(x.unsqueeze(-1), factor), torch.linalg.inv(matrix)


def chunks(x):
    first, rest = x.split([1, 2], 1)
    values, places = rest.sort(1)
    return torch.cat([first * values, places.to(x.dtype)], 1), torch.stack([first, first])


def derivatives(x):
    def value(p):
        return (p.sin() * p.exp()).sum() + torch.lgamma(p.square() + 1).prod()

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        total = vmap(value)(x).sum()
        return (torch.autograd.grad(total, x)[0], total.detach())


def twice_negative(x):
    return x.neg().neg(), (x**1.0) * 1.0 - 0.0, x + 0.0, -0.0 * x


def picked(x):
    return x[:, DATA > 0] * DATA[DATA > 0], x[:, torch.tensor([2, 0])]


@pytest.mark.parametrize(
    "f",
    [in_place, filled, factorised, chunks, derivatives, twice_negative, picked],
    ids=lambda f: f.__name__,
)
def test_it_gives_the_same_bits_elsewhere(f):
    first, replay = record(f, points(0))
    assert not isinstance(replay, str), replay
    for seed in (0, 1, 2, 1):
        for a, b in zip(replay(points(seed)), f(points(seed)), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
    assert all(torch.equal(a, b) for a, b in zip(first, f(points(0)), strict=True))


def test_it_reads_data_and_weights_where_they_are():
    data, net = torch.ones(3, dtype=torch.float64), nn.Linear(3, 2).double()

    def f(x):
        return (net(x) * (data.log() + x).sum(),)

    _, replay = record(f, points(0))
    with torch.no_grad():
        data.mul_(3)
        net.weight.add_(1.0)
    assert torch.equal(replay(points(1))[0], f(points(1))[0])
    assert not replay(points(1))[0].requires_grad


KEPT = torch.zeros(3, dtype=torch.float64)


def counting(x):
    KEPT.add_(1.0)
    return (x + KEPT,)


OBJECTED = {
    "random": (lambda x: (x + torch.randn(3),), "random numbers"),
    "seeded": (lambda x: (x + torch.rand(3, generator=torch.Generator()),), "random numbers"),
    "writes to data": (counting, "writes to a tensor"),
    "branches": (lambda x: (x if float(x.sum()) > 0 else -x,), "depends on the values"),
    "sparse": (lambda x: (x.to_sparse().to_dense(),), "sparse"),
    "writes to the points": (lambda x: (x.mul_(2),), "writes to a tensor"),
}


@pytest.mark.parametrize("name", OBJECTED)
def test_what_cannot_be_done_again_is_objected_to(name):
    f, why = OBJECTED[name]
    found, replay = record(f, points(0))
    assert isinstance(replay, str) and why in replay
    assert found[0].shape == (4, 3)


def test_values_that_decide_what_is_done_are_looked_at():
    data, mask = torch.tensor(2), torch.tensor([True, False, True])

    def f(x):
        return (x.repeat(1, int(data))[:, : int(mask.sum())] * x[:, mask],)

    _, replay = record(f, points(0))
    assert torch.equal(replay(points(1))[0], f(points(1))[0])
    mask.copy_(torch.tensor([True, True, True]))
    with pytest.raises(Stale):
        replay(points(1))
    mask.copy_(torch.tensor([True, False, True]))
    data.fill_(3)
    with pytest.raises(Stale):
        replay(points(1))


def test_data_of_another_shape_are_seen():
    data = torch.ones(3, dtype=torch.float64)
    _, replay = record(lambda x: (x * data.sum(),), points(0))
    data.resize_(5).fill_(1.0)
    with pytest.raises(Stale):
        replay(points(0))


def test_results_are_the_callers_own():
    data = torch.ones(3, dtype=torch.float64)
    x = points(0)
    _, replay = record(lambda x: (data, x, torch.zeros(3).expand(4, 3), x[:, 0], data[1:]), x)
    for result in replay(x):
        result += 1.0 if result.stride(0) else 0.0
    assert torch.equal(x, points(0)) and torch.equal(data, torch.ones(3))
    assert torch.equal(replay(x)[2], torch.zeros(4, 3))


def test_what_is_in_between_is_not_kept():
    made = []

    def f(x):
        between = x.exp()
        made.append(weakref.ref(between))
        return (between.sum(),)

    _, replay = record(f, points(0))
    assert made[0]() is None
    assert float(replay(points(1))[0]) == float(f(points(1))[0])


def test_tracing_is_told():
    seen = []

    def f(x):
        seen.append((recording(), tracing()))
        return (x * 2,)

    record(f, points(0))
    assert seen == [(True, True)] and not tracing() and not recording()


def test_a_graph_takes_several_inputs_and_what_was_found_elsewhere():
    weights = torch.randn(3, 3)

    def f(x, y, flag):
        z = x @ weights
        z += y  # its own memory may be written to
        return [
            torch.where(flag > 0, z, x),
            torch.func.vmap(torch.func.grad(lambda v: (v * y).sum()))(x),
        ]

    x, y = torch.randn(2, 3), torch.randn(3)
    graph, held = traced(f, [x, y, torch.ones(())])
    x, y = torch.randn(2, 3), torch.randn(3)
    for flag in (torch.ones(()), -torch.ones(())):
        for found, expected in zip(graph(x, y, flag, *held), f(x, y, flag), strict=True):
            assert torch.equal(found, expected)
    # one tensor that is given twice is two inputs
    graph, held = traced(lambda a, b: [a - 2 * b], [x, x])
    assert torch.equal(graph(x, 3 * x, *held)[0], x - 6 * x)


def test_a_graph_that_depends_on_values_is_refused():
    for f in (lambda x: [x if x.sum() > 0 else -x], lambda x: [x * float(x[0])]):
        with pytest.raises(ValueError, match="depends on the values that"):
            traced(f, [torch.ones(3)])
    with pytest.raises(ValueError, match=r"the shapes that .* gives depend on values"):
        traced(lambda x: [x[x > 0].sum() + x], [torch.ones(3)])
    with pytest.raises(ValueError, match="draws random numbers"):
        traced(lambda x: [x + torch.randn(3)], [torch.ones(3)])


def test_an_operation_may_be_written_out_by_others():
    def rows(a, b):
        return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2) if len(a) == 2 else NotImplemented

    table = {torch.ops.aten.mm.default: rows}
    for n, written in ((2, True), (3, False)):
        a, b = torch.randn(n, 4), torch.randn(4, 5)
        graph, held = traced(lambda a, b: [a @ b], [a, b], table)
        assert ("sum" in graph.code) == written and ("mm" in graph.code) != written
        torch.testing.assert_close(graph(2 * a, b, *held)[0], 2 * a @ b)


def test_a_check_that_may_raise_is_no_part_of_a_graph():
    def f(x):
        torch.linalg.cholesky(x.mT @ x + torch.eye(3))
        return [x + 1]

    graph, held = traced(f, [torch.ones(3, 3)])
    assert "cholesky" not in graph.code and "check_errors" not in graph.code
    assert torch.equal(graph(torch.zeros(3, 3), *held)[0], torch.ones(3, 3))
