"""These functions compute moments of the clean point behind a noisy one, from scores.

Let x̃ = x + σz with z standard normal, and s_n the n-th derivative tensor of log p_σ at x̃, the
smoothed law, never p. The cumulants of x given x̃ are, for noise of any size in each dimension and
N = diag(σ²),

    κ_1 = x̃ + N s1 (Tweedie, eq. 4), κ_n = N^{⊗n} s_n + N·[n = 2].

Moments follow from them, and are the polynomials of Lemma 1 and Theorem 3. Two forms are told
apart by the shapes of the scores, and one call uses one of them:

* diagonal: every s_k is (*batch, D), the entries [i, …, i] of its tensor. Then moments and
  cumulants are those of each coordinate by itself.
* full: s_k is (*batch, D, …, D) with k trailing dimensions, symmetric in them.

At n = 1 the two are the same. Where D = 1 the count of the dimensions still tells them apart.

Reference:
    Meng et al., "Estimating High Order Gradients of the Data Distribution by Denoising",
    NeurIPS 2021, Lemma 1 and Theorem 3.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from string import ascii_lowercase

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.shapes import Float


def posterior_cumulants(
    scores: Sequence[Tensor], x: Float[Tensor, "*batch dim"], sigma: float | Tensor
) -> tuple[Tensor, ...]:
    """The cumulants of the clean point given the noisy one, κ_n = σ^{2n} s_n + σ² I·[n = 2].

    The first is the mean, κ_1 = x̃ + σ² s1 (eq. 4); the second the covariance, σ²(I + σ² s2)
    (eq. 18). Above the second, those of a Gaussian are 0.

    Args:
        scores: (s1, …, sn) of the smoothed law at `x`, all (*batch, D), or s_k of shape
            (*batch, D, …, D) with k trailing dimensions.
        x: noisy points, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x, so that it may
            differ by sample and by dimension, in both forms.

    Returns:
        (κ_1, …, κ_n), each of the shape of its score.

    Raises:
        ValueError: no scores, a score or σ whose shape does not fit, a number σ not above 0.

    Example:
        >>> x, s1, s2 = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[-0.5]])
        >>> posterior_cumulants((s1, s2), x, 1.0)  # N(0, 1) under noise of size 1
        (tensor([[1.]]), tensor([[0.5000]]))
    """
    full = _is_full(scores, x)
    _check_sigma(sigma, x)
    cumulants = [_scaled(s, k if full else 1, k, sigma) for k, s in enumerate(scores, 1)]
    cumulants[0] = x + cumulants[0]
    if len(scores) > 1:
        units = (torch.ones_like(x) * sigma).square()
        cumulants[1] = cumulants[1] + (torch.diag_embed(units) if full else units)
    return tuple(cumulants)


def posterior_moments(
    scores: Sequence[Tensor],
    x: Float[Tensor, "*batch dim"],
    sigma: float | Tensor,
    *,
    central: bool = False,
) -> tuple[Tensor, ...]:
    """The moments of the clean point given the noisy one, E[x^{⊗k}|x̃] for k = 1, …, n (Lemma 1).

    In the diagonal form m_n = Σ_k C(n−1, k−1) κ_k m_{n−k}, m_0 = 1. In the full form the sum over
    all set partitions of the n indices of products of cumulants, one a block, is ordered likewise:
    the block of the first index, with every choice of its other members, times a moment of the
    rest. That makes 2^{n−1} terms, none larger than the result.

    Args:
        scores: (s1, …, sn) of the smoothed law at `x`, all (*batch, D), or s_k of shape
            (*batch, D, …, D) with k trailing dimensions.
        x: noisy points, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.
        central: of x − E[x|x̃] instead of x, without the cancellation that raw moments of a narrow
            posterior far from 0 suffer. The first is then 0.

    Returns:
        (E[x|x̃], …, E[x^{⊗n}|x̃]), each of the shape of its score.

    Raises:
        ValueError: no scores, a score or σ whose shape does not fit, a number σ not above 0.

    Source: Meng et al. (2021), Lemma 1 and Theorem 3.

    Example:
        >>> x, s1, s2 = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[-0.5]])
        >>> posterior_moments((s1, s2), x, 1.0)
        (tensor([[1.]]), tensor([[1.5000]]))
        >>> posterior_moments((s1, s2), x, 1.0, central=True)
        (tensor([[0.]]), tensor([[0.5000]]))
    """
    cumulants = posterior_cumulants(scores, x, sigma)
    full = cumulants[-1].ndim > x.ndim
    moments = [torch.zeros_like(x) if central else cumulants[0]]
    for n in range(2, len(cumulants) + 1):
        total = cumulants[n - 1]  # the block of all n indices
        # centred, κ_1 = 0: no block of one, nor a rest of one, since m_1 = 0
        for k in range(2 if central else 1, n - 1 if central else n):
            block, rest = cumulants[k - 1], moments[n - k - 1]
            if full:
                for members in combinations(range(1, n), k - 1):
                    total = total + _outer(block, (0, *members), rest, n)
            else:
                total = total + comb(n - 1, k - 1) * block * rest
        moments.append(total)
    return tuple(moments)


def _outer(block: Tensor, members: tuple[int, ...], rest: Tensor, n: int) -> Tensor:
    """The product block ⊗ rest, with the indices of the block at `members` of the n places."""
    inside = "".join(ascii_lowercase[i] for i in members)
    outside = "".join(ascii_lowercase[i] for i in range(n) if i not in members)
    return torch.einsum(f"...{inside},...{outside}->...{ascii_lowercase[:n]}", block, rest)


def _scaled(score: Tensor, axes: int, order: int, sigma: float | Tensor) -> Tensor:
    """N^{⊗order} s: σ² on each of the `axes` last dimensions, or σ^{2·order} on the only one."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0 or axes == 1:
        for _ in range(order):  # σ^{2·order} itself may be 0 or infinite where the product is not
            score = sigma**2 * score
        return score
    variance = sigma.square()
    batch, dim = variance.shape[:-1], variance.shape[-1]
    for axis in range(axes):
        score = score * variance.reshape(*batch, *(1,) * axis, dim, *(1,) * (axes - 1 - axis))
    return score


def _is_full(scores: Sequence[Tensor], x: Tensor) -> bool:
    """Say whether the scores are full tensors; raise ValueError unless all are of one form."""
    if isinstance(scores, Tensor) or not scores:
        was = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else "empty"
        raise ValueError(f"scores must be a tuple (s1, …, sn) of tensors, but was {was}")
    batch, dim = tuple(x.shape[:-1]), x.shape[-1]
    full = len(scores) > 1 and scores[1].ndim > x.ndim  # s1 looks the same in both
    for k, score in enumerate(scores, 1):
        expected = (*batch, *(dim,) * (k if full else 1))
        if tuple(score.shape) != expected:
            form = "full" if full else "diagonal"
            raise ValueError(
                f"scores[{k - 1}], which is s{k}, must have shape {expected} at x of shape "
                f"{tuple(x.shape)}, but had {tuple(score.shape)}; scores[1] set the {form} form, "
                "which all must share"
            )
    return full


def _check_sigma(sigma: float | Tensor, x: Tensor) -> None:
    """Raise ValueError unless σ is a number above 0, or a tensor that x can be multiplied by."""
    if not isinstance(sigma, Tensor):
        validation.positive("sigma", sigma)
        return
    sizes = zip(reversed(sigma.shape), reversed(x.shape), strict=False)
    if sigma.ndim > x.ndim or any(s not in (1, d) for s, d in sizes):
        raise ValueError(
            f"sigma must be a number or broadcast against x of shape {tuple(x.shape)}, but had "
            f"shape {tuple(sigma.shape)}; a σ a sample needs a last dimension of 1, (*batch, 1)"
        )
