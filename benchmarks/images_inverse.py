"""A learned prior in a probabilistic program: inpainting and deblurring digits.

    python -m benchmarks.images_inverse [--quick | --gpu] [--seed N] [--data D] [--models M]

The image u is a held-out digit with noise of σ = 0.3, a draw of the law whose score was learned;
read are, with further noise of 0.1, all of its pixels but a square of 10 × 10 in the middle, or u
blurred over 1.5 pixels. `ScoreOzakiKernel` walks on the posterior of u under the prior
`ScoreDistribution(estimator.at(0.3))`, by the mean over warm-up of the diagonal of the posterior's
Hessian, which through 784 products is dear to take anew at every point. Told are: the share of
pixels of u that lie in the central 90% of their draws, of all and of the square; the PSNR of the
mean of the clean digit (the mean over draws of Tweedie's means), beside that of Tweedie's formula
alone, on the readings as they are, where pixels that were not read are at their mean over training
digits; and R-hat.
"""

import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks import images
from benchmarks.common import table
from benchmarks.images import plt
from ozaki import MCMC, ScoreDistribution, ScoreOzakiKernel, denoise
from ozaki.diagnostics import summary

SIGMA, READING = 0.3, 0.1
HIDDEN = (slice(9, 19), slice(9, 19))
BLUR, REACH = 1.5, 4
INSIDE = 0.9

Reading = Callable[[Tensor], Tensor]


def seen() -> Tensor:
    """1 where a pixel is read, (28, 28)."""
    mask = torch.ones(28, 28)
    mask[HIDDEN] = 0
    return mask


def inpainting(u: Tensor) -> Tensor:
    """What is read of images (*batch, 1, 28, 28), 0 where nothing is."""
    return u * seen().to(u)


def blurred(u: Tensor) -> Tensor:
    """A Gaussian mean over the neighbours; black beyond the border."""
    line = torch.exp(-(torch.arange(-REACH, REACH + 1.0).to(u) ** 2) / (2 * BLUR**2))
    line = line / line.sum()
    flat = u.reshape(-1, 1, 28, 28)
    down = conv2d(flat, line.view(1, 1, -1, 1), padding=(REACH, 0))
    return conv2d(down, line.view(1, 1, 1, -1), padding=(0, REACH)).reshape(u.shape)


def psnr(found: Tensor, clean: Tensor) -> float:
    """In decibels, of intensities in [0, 1]."""
    return float(-10 * (found - clean).square().mean().log10())


def one(score, reading: Reading, y: Tensor, args) -> tuple[Tensor, float, float]:
    """Draws of u, (n, 1, 28, 28), the largest R-hat, and the mean acceptance."""
    warmup, steps, chains = (20, 20, 4) if args.quick else (60, 300, 6)

    def model(y: Tensor) -> None:
        u = pyro.sample("u", ScoreDistribution(score))
        pyro.sample("y", dist.Normal(reading(u), READING).to_event(3), obs=y)

    mcmc = MCMC(
        ScoreOzakiKernel(model, curvature="diagonal", frozen=True),
        num_samples=steps,
        warmup_steps=warmup,
        num_chains=chains,
        seed=args.seed,
        disable_progbar=True,
    )
    mcmc.run(y)
    rhat = float(summary(mcmc.to_inference_data(log_likelihood=False))["r_hat"].median())
    accepted = mcmc.diagnostics()["acceptance rate"]
    return mcmc.get_samples()["u"], rhat, sum(accepted.values()) / len(accepted)


def main() -> None:
    args = images.options(__doc__ or "")
    torch.set_num_threads(1)
    train, test = images.digits(args)[0], images.digits(args, "test")[0]
    score = images.model(args, "mnist", train).at(SIGMA)
    count = 1 if args.quick else 100 if args.gpu else 4
    generator = torch.Generator().manual_seed(args.seed)
    clean = test[2000 : 2000 + count]
    true = images.noised(clean, SIGMA, generator)
    mean = train.mean(0)
    rows, shown = [], {}
    for name, reading in (("inpainting", inpainting), ("deblurring", blurred)):
        y = images.noised(reading(true), READING, generator)
        filled = y * seen() + mean * (1 - seen()) if name == "inpainting" else y
        naive = denoise(score, filled).mean
        found, inside, at_square, rhats, rates = [], [], [], [], []
        began = time.perf_counter()
        for observed, truth in zip(y, true, strict=True):
            draws, rhat, rate = one(score, reading, observed, args)
            low, high = (draws.quantile(q, 0) for q in ((1 - INSIDE) / 2, (1 + INSIDE) / 2))
            within = ((truth >= low) & (truth <= high)).double()
            inside.append(float(within.mean()))
            at_square.append(float(within[0][HIDDEN].mean()))
            found.append(denoise(score, draws, curvature=None).mean.mean(0))
            rhats.append(rhat)
            rates.append(rate)
            print(".", end="", flush=True)
        means = torch.stack(found)
        rows.append(
            {
                "task": name,
                "images": count,
                "covered": sum(inside) / count,
                "covered_square": sum(at_square) / count,
                "psnr": psnr(means, clean),
                "psnr_tweedie": psnr(naive, clean),
                "psnr_square": psnr(means[:, 0, *HIDDEN], clean[:, 0, *HIDDEN]),
                "psnr_square_tweedie": psnr(naive[:, 0, *HIDDEN], clean[:, 0, *HIDDEN]),
                "median_rhat": max(rhats),
                "acceptance": sum(rates) / count,
                "seconds": (time.perf_counter() - began) / count,
            }
        )
        shown[name] = (clean, true, y, naive, means)
    print()
    table(rows, list(rows[0]))
    draw(shown, args)
    bars = []
    for r in rows:
        bars += [
            {"bar": f"{r['task']}: in the central 90%", "asked": "0.9", "measured": r["covered"]},
            {
                "bar": f"{r['task']}: PSNR of the posterior mean less Tweedie's, dB",
                "asked": "> 0",
                "measured": r["psnr"] - r["psnr_tweedie"],
            },
        ]
    images.write("images_inverse", args, rows, bars)


def draw(shown: dict[str, tuple[Tensor, ...]], args) -> None:
    """A column an image, a block of rows a task."""
    names = ("clean", "u", "readings", "Tweedie alone", "posterior mean")
    count = min(6, len(next(iter(shown.values()))[0]))
    lines = [
        (task, n, p) for task, parts in shown.items() for n, p in zip(names, parts, strict=True)
    ]
    figure, axes = plt.subplots(
        len(lines), count, figsize=(count, 1.02 * len(lines)), squeeze=False
    )
    for line, (task, name, pictures) in zip(axes, lines, strict=True):
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture[0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        label = f"{task}\n{name}" if name == "clean" else name
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    images.save(figure, args, "images_inverse")


if __name__ == "__main__":
    main()
