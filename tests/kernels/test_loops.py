"""Loops of our own: the same numbers as the step taken again and again, whatever it is made of."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from ozaki.kernels.code_cache import compiler
from ozaki.kernels.loops import compiled_loop, native, scan
from ozaki.kernels.loops.values import Unsupported
from tests.kit.strategies import generator
from tests.kit.tolerances import rounding

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.skipif(compiler() is None, reason="no compiler"),
]
DIM = 10


def inputs(chains: int, dtype: torch.dtype, steps: int = 5):
    """(carry, noise, rest): a matrix may have as many rows as there are chains."""
    g = generator(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    carry = [draw(chains, DIM), draw(chains)]
    noise = [draw(steps, chains, DIM), draw(steps, chains), draw(steps).exp()]
    rest = [draw(chains, 1).exp(), draw(DIM, DIM) / 4, draw(7, DIM), torch.tensor([3, 0, 3, 9])]
    return carry, noise, rest


def walked(step, carry, noise, rest):
    """The loop in Python."""
    kept, n = [], len(carry)
    for parts in zip(*noise, strict=True):
        found = step(*carry, *parts, *rest)
        carry = found[:n]
        kept.append(found[n:])
    return [*carry, *(torch.stack(part) for part in zip(*kept, strict=True))]


def traced(step, carry, noise, rest):
    return make_fx(lambda *t: step(*t))(*carry, *(p[0] for p in noise), *rest)


def moved(x, y, z, w, scale, h, a):
    """What is carried, of the size that it has."""
    return torch.tanh(x @ a + h * scale * z), y / 2 + w


def pointwise(x, y, z, w, scale, h, a, data, index):
    u, v = x * scale, x.abs() + 0.1
    parts = [u.exp(), v.log(), v.sqrt(), v.rsqrt(), u.sin() * u.cos(), u.tanh(), u.sigmoid()]
    parts += [u.erf(), v.lgamma(), u.expm1(), v.log1p(), v**2.5, v**3, v**-1, u.sign(), u.floor()]
    parts += [torch.maximum(u, z), torch.minimum(u, z), u.clamp(-0.5, 0.5), torch.atan2(u, v)]
    parts += [torch.where(u > 0, u, z), torch.nn.functional.softplus(u), u.logaddexp(z)]
    parts += [torch.nn.functional.silu(u), torch.nn.functional.gelu(u), u.clamp(min=0).square()]
    return [*moved(x, y, z, w, scale, h, a), *parts]


def reductions(x, y, z, w, scale, h, a, data, index):
    block = x.reshape(-1, 5, 2) * 1.5
    parts = [x.sum(-1), x.mean(-1), x.amax(-1), x.amin(-1), block.sum(1), block.sum((1, 2))]
    parts += [(x > 1).any(-1), (x > -1).all(-1), x.logsumexp(-1), x.softmax(-1), x.cumsum(-1)]
    parts += [x.prod(-1), x.mean(0), block.var(1), (x - x.mean(-1, keepdim=True)).norm(dim=-1)]
    return [*moved(x, y, z, w, scale, h, a), *parts]


def products(x, y, z, w, scale, h, a, data, index):
    outer = torch.einsum("ci,cj->cij", x, z)
    parts = [x @ a, a @ x.mT, data @ x.mT, (x * data[:, None]).sum(-1), outer @ a, a @ outer]
    parts += [(outer @ x[..., None]).squeeze(-1), outer @ outer, torch.addmm(a[0], x, a)]
    parts += [(x * a.diagonal()).sum(-1), outer.diagonal(dim1=-2, dim2=-1), outer.tril()]
    return [*moved(x, y, z, w, scale, h, a), *parts]


def placed(x, y, z, w, scale, h, a, data, index):
    parts = [x[:, index], torch.cat([x, z[:, :3], y[:, None]], 1), torch.stack([x, z], 1)]
    parts += [torch.zeros_like(x).index_add(1, index, z[:, :4]), x.roll(1, -1), x.flip(-1)]
    parts += [torch.diag_embed(z), x[:, 2:8:2], x.reshape(-1, 2, 5).mT.reshape(-1, 10)]
    parts += [x.unflatten(1, (2, 5))[:, 1]]
    return [*moved(x, y, z, w, scale, h, a), *parts]


def factorised(x, y, z, w, scale, h, a, data, index):
    near = (
        torch.einsum("ci,cj->cij", x, x)
        + torch.eye(DIM, dtype=x.dtype) * (1 + y.abs())[:, None, None]
    )
    factor, info = torch.linalg.cholesky_ex(near)
    solved = torch.linalg.solve_triangular(factor, z.unsqueeze(-1), upper=False)
    back = torch.linalg.solve_triangular(factor.mT, solved, upper=True)
    values, vectors = torch.linalg.eigh(near)
    whole = (vectors * values.unsqueeze(-2)) @ vectors.mT
    wrong = torch.linalg.cholesky_ex(-near)[1]
    parts = [factor, info != 0, wrong != 0, solved, back, values, whole]
    return [*moved(x, y, z, w, scale, h, a), *parts]


STEPS = [pointwise, reductions, products, placed, factorised]


def agree(step, chains, dtype, terms=1000):
    carry, noise, rest = inputs(chains, dtype)
    run = native.loop(traced(step, carry, noise, rest), carry, [p[:1] for p in noise], rest)
    with torch.no_grad():
        wanted = walked(step, carry, noise, rest)
    for i, (a, b) in enumerate(zip(run(*carry, *noise, *rest), wanted, strict=True)):
        assert a.dtype == b.dtype
        assert_close(a, b, **rounding(dtype, terms=terms), msg=lambda m, i=i: f"output {i}: {m}")


@pytest.mark.parametrize("step", STEPS)
def test_a_loop_does_what_its_step_does(step):
    agree(step, DIM, torch.float64)  # as many chains as dimensions: nothing else tells them apart


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("chains", [1, 2, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_so_it_is_for_any_number_of_chains(step, chains, dtype):
    agree(step, chains, dtype)


def broken(x, y, z, w, scale, h, a, data, index):
    """Entries that are no numbers, or too large ones."""
    u = torch.where(z > 0.5, torch.nan, torch.where(z < -0.5, torch.inf, z))
    parts = [u.sum(-1), u.amax(-1), u.isfinite(), u.isnan(), u.isinf(), torch.maximum(u, x)]
    parts += [torch.where(u.isfinite(), u, x), u.clamp(-1, 1), u.nan_to_num(0.0, 1.0, 2.0), -u]
    parts += [(u > 0) & (x > 0), u == u, (u * 0).exp(), torch.isfinite(u).all(-1)]
    return [*moved(x, y, z, w, scale, h, a), *parts]


def test_what_is_no_number_is_told_apart():
    carry, noise, rest = inputs(6, torch.float64)
    run = native.loop(traced(broken, carry, noise, rest), carry, [p[:1] for p in noise], rest)
    for a, b in zip(run(*carry, *noise, *rest), walked(broken, carry, noise, rest), strict=True):
        assert_close(a, b, equal_nan=True, **rounding(torch.float64, terms=1000))


def plain(x, y, z, w, scale, h, a, data, index):
    new = moved(x, y, z, w, scale, h, a)
    return [*new, new[0], new[1] > 0, z.mean(0)]


def test_rows_say_what_is_kept():
    carry, noise, rest = inputs(6, torch.float64)
    run = native.loop(traced(plain, carry, noise, rest), carry, [p[:1] for p in noise], rest)
    every = run(*carry, *noise, *rest)
    some = run(*carry, *noise, *rest, rows=torch.tensor([-1, 0, -1, -1, 1]))
    assert_close(some[:2], every[:2], rtol=0, atol=0)
    for a, b in zip(some[2:], every[2:], strict=True):
        assert torch.equal(a, b[[1, 4]])


def test_threads_change_no_number(monkeypatch):
    carry, noise, rest = inputs(1000, torch.float64)
    run = native.loop(traced(plain, carry, noise, rest), carry, [p[:1] for p in noise], rest)
    one = run(*carry, *noise, *rest)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(run(*carry, *noise, *rest), one, strict=True))
    for a, b in zip(one, walked(plain, carry, noise, rest), strict=True):
        assert_close(a, b, **rounding(torch.float64, terms=1000))


def sorted_(x, y, z, w, scale, h, a, data, index):
    return [*moved(x, y, z, w, scale, h, a), x.sort(-1).values]


def coupled(x, y, z, w, scale, h, a, data, index):
    return [x - x.mean(0), y + w, z]


def crossed(x, y, z, w, scale, h, a, data, index):
    return [(x @ x.mT) @ x, y, z]


@pytest.mark.parametrize("step", [sorted_, coupled, crossed])
def test_what_is_not_known_goes_to_the_compiler_of_torch(step, monkeypatch):
    carry, noise, rest = inputs(6, torch.float64)
    graph = traced(step, carry, noise, rest)
    with pytest.raises(Unsupported):
        native.loop(graph, carry, noise, rest)
    monkeypatch.setattr(scan, "loop", lambda *args: args)
    assert compiled_loop(graph, carry, noise, rest) == (graph, carry, noise, rest)


@pytest.mark.thorough
def test_the_compiler_of_torch_gives_the_same():
    carry, noise, rest = inputs(6, torch.float64)
    run = scan.loop(traced(plain, carry, noise, rest), carry, noise, rest)
    rows = torch.tensor([-1, 0, -1, -1, 1])
    own = native.loop(traced(plain, carry, noise, rest), carry, noise, rest)
    for options in ({}, {"rows": rows}):
        found = run(*carry, *noise, *rest, **options)
        for a, b in zip(found, own(*carry, *noise, *rest, **options), strict=True):
            assert_close(a, b, **rounding(torch.float64, terms=1000))


def test_tensors_of_another_shape_are_refused():
    carry, noise, rest = inputs(6, torch.float64)
    run = native.loop(traced(plain, carry, noise, rest), carry, noise, rest)
    with pytest.raises(ValueError, match="argument 0 of a compiled loop must be"):
        run(carry[0][:3], carry[1], *noise, *rest)
