"""Denoising in the plane (Fig. 2 of the paper): the learned posterior and the true one.

    python -m benchmarks.images_denoising_2d [--quick] [--seed N]

Two laws, a ring and a spiral of narrow normals, whose posterior given a noisy point is known: a
mixture of normals. A score of s1 and the whole of s2 is learned from 20,000 points; then for 1,000
noisy points the Kullback-Leibler divergence KL(N(m, C) ‖ N(m̂, Ĉ)) from the posterior's true moments
to those that `ozaki.denoise` gives, where that posterior has one mode; and over all points the
energy distance of draws from draws of the true posterior, beside those of the mean alone and of a
normal with the best constant covariance.
"""

import math
import time

import torch
from torch import Tensor

from benchmarks import images
from benchmarks.common import table
from benchmarks.images import plt
from ozaki.denoising import denoise
from ozaki.denoising.posterior import Posterior
from ozaki.scores.analytic import GaussianMixtureScore
from ozaki.scores.learned.trainer import DSMTrainer

SIGMA = 0.4  # of the noise, in the data's units, where the laws spread by about one
POINTS, DRAWS = 1000, 200
SHOWN = 3


def ring(count: int = 24) -> GaussianMixtureScore:
    """Narrow normals on a circle, wide along it."""
    angles = torch.arange(count).double() * 2 * math.pi / count
    return _law(1.4 * torch.stack([angles.cos(), angles.sin()], 1), angles + math.pi / 2)


def spiral(count: int = 24) -> GaussianMixtureScore:
    """Narrow normals on the outer arc of a spiral."""
    angles = torch.linspace(0.6, 1, count).double().mul(3 * math.pi)
    radius = angles / math.pi * 0.75
    along = angles + (math.pi / 2 - torch.atan(1 / angles))
    return _law(radius.unsqueeze(1) * torch.stack([angles.cos(), angles.sin()], 1), along)


def _law(means: Tensor, angles: Tensor) -> GaussianMixtureScore:
    axes = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], 1).view(-1, 2, 2)
    variances = torch.tensor([0.2**2, 0.06**2], dtype=torch.float64)
    return GaussianMixtureScore(means, axes.mT @ (variances.unsqueeze(-1) * axes))


def true_posterior(law: GaussianMixtureScore, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n, K), means (n, K, 2) and covariances (K, 2, 2) of x given x + noise."""
    total = law.covariances + SIGMA**2 * torch.eye(2, dtype=torch.float64)
    gain = law.covariances @ torch.linalg.inv(total)
    off = noisy.unsqueeze(1) - law.means
    means = law.means + (gain @ off.unsqueeze(-1)).squeeze(-1)
    normal = torch.distributions.MultivariateNormal(law.means, total)
    weights = (normal.log_prob(noisy.unsqueeze(1)) + law.weights.log()).softmax(-1)
    return weights, means, law.covariances - gain @ law.covariances


def moments(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (n, 2) and covariance (n, 2, 2) of mixtures."""
    weights, means, covariances = parts
    mean = (weights.unsqueeze(-1) * means).sum(1)
    off = means - mean.unsqueeze(1)
    outer = off.unsqueeze(-1) * off.unsqueeze(-2)
    return mean, (weights[..., None, None] * (covariances + outer)).sum(1)


def draws(parts: tuple[Tensor, Tensor, Tensor], n: int, generator: torch.Generator) -> Tensor:
    """(points, n, 2) of mixtures."""
    weights, means, covariances = parts
    which = torch.multinomial(weights, n, replacement=True, generator=generator)
    z = torch.randn(*which.shape, 2, 1, generator=generator, dtype=torch.float64)
    centre = means.gather(1, which.unsqueeze(-1).expand(-1, -1, 2))
    return centre + (torch.linalg.cholesky(covariances)[which] @ z).squeeze(-1)


def one_mode(parts: tuple[Tensor, Tensor, Tensor], side: int = 81) -> Tensor:
    """Whether the density of each mixture has one peak on a fine grid about its mean, (n,)."""
    weights, means, covariances = parts
    mean, covariance = moments(parts)
    reach = 3.5 * covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariances)
    single = []
    for w, m, centre, size in zip(weights, means, mean, reach, strict=True):
        log = (normal.log_prob(centre + size * grid - m) + w.log()).logsumexp(-1).view(side, side)
        around = torch.nn.functional.max_pool2d(log[None, None], 3, 1, 1)[0, 0]
        # a peak lower than a thousandth of the highest holds nothing that a moment would notice
        peaks = (log == around) & (log > log.max() - math.log(1000))
        single.append(int(peaks.sum()) == 1)
    return torch.tensor(single)


def divergence(mean: Tensor, covariance: Tensor, found: Posterior) -> Tensor:
    """KL(N(mean, covariance) ‖ the posterior found), (n,)."""
    stated = torch.distributions.MultivariateNormal(found.mean, found.covariance.dense())
    true = torch.distributions.MultivariateNormal(mean, covariance)
    return torch.distributions.kl_divergence(true, stated)


def row(name: str, law: GaussianMixtureScore, args) -> tuple[dict, tuple]:
    """The figures of one law, and what its picture needs."""
    generator = torch.Generator().manual_seed(args.seed)
    data = law.sample(20_000, generator).float()
    began = time.perf_counter()
    estimator = DSMTrainer(
        SIGMA,
        curvature="low_rank",
        rank=2,
        signed=False,
        standardize=None,
        max_steps=300 if args.quick else 3000,
        seed=args.seed,
        progress=False,
    ).fit(data)
    seconds = time.perf_counter() - began
    clean = law.sample(100 if args.quick else POINTS, generator)
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    parts = true_posterior(law, noisy)
    mean, covariance = moments(parts)
    found = denoise(estimator, noisy)
    single = one_mode(parts)
    kl = divergence(mean, covariance, found)
    true, other = (draws(parts, DRAWS, generator) for _ in range(2))
    constant = (clean - found.mean).mT.cov()
    z = torch.randn(DRAWS, *noisy.shape, generator=generator, dtype=noisy.dtype)
    clouds = {
        "exact": other,
        "learned": found.sample(DRAWS, generator).movedim(0, 1),
        "constant": (found.mean + z @ torch.linalg.cholesky(constant).mT).movedim(0, 1),
        "mean": found.mean.unsqueeze(1).expand_as(true),
    }
    distance = {
        f"energy_{k}": sum(
            images.energy_distance(a, b) for a, b in zip(true, cloud, strict=True)
        ) / len(true)
        for k, cloud in clouds.items()
    }  # fmt: skip
    figures = {
        "law": name,
        "unimodal": float(single.double().mean()),
        "kl_unimodal": float(kl[single].mean()),
        "kl_unimodal_95": float(kl[single].quantile(0.95)),
        "kl_others": float(kl[~single].mean()) if not bool(single.all()) else 0.0,
        **distance,
        "seconds": seconds,
    }
    return figures, (data, noisy, true, clouds["learned"], found.mean)


def draw(pictures: dict[str, tuple], args) -> None:
    """For a few points of each law the true posterior, the mean alone, the learned normal."""
    titles = ("data and noisy points", "true posterior", "mean alone", "learned covariance")
    figure, axes = plt.subplots(len(pictures), 4, figsize=(10, 2.7 * len(pictures)), squeeze=False)
    for line, (name, (data, noisy, true, learned, mean)) in zip(
        axes, pictures.items(), strict=True
    ):
        for axis, title in zip(line, titles, strict=True):
            axis.scatter(*data[:2000].T, s=1, lw=0, color="0.8", rasterized=True)
            axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
            axis.set_title(title, fontsize=9)
        line[0].set_ylabel(name)
        for i in range(SHOWN):
            colour = f"C{i}"
            line[0].plot(*noisy[i], "x", color=colour)
            for axis, cloud in ((line[1], true[i]), (line[3], learned[i])):
                axis.scatter(*cloud.T, s=4, lw=0, color=colour, rasterized=True)
            line[2].plot(*mean[i], "o", ms=4, color=colour)
    figure.tight_layout()
    images.save(figure, args, "images_denoising_2d")


def main() -> None:
    args = images.options(__doc__ or "")
    torch.set_num_threads(1)
    rows, pictures = [], {}
    for name, law in (("ring", ring()), ("spiral", spiral())):
        figures, pictures[name] = row(name, law, args)
        rows.append(figures)
    table(rows, list(rows[0]))
    bars = [
        {
            "bar": f"{r['law']}: mean KL to the exact moments where the posterior has one mode",
            "asked": "<= 0.05",
            "measured": r["kl_unimodal"],
        }
        for r in rows
    ]
    draw(pictures, args)
    images.write("images_denoising_2d", args, rows, bars)


if __name__ == "__main__":
    main()
