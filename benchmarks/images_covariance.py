"""Posterior variances of images (Fig. 3 of the paper): whether they are right, and where they lie.

    python -m benchmarks.images_covariance [--quick | --gpu] [--seed N] [--data D] [--models M]

One noise-conditional model each of MNIST and of the CIFAR-10 subset serves all σ. On held-out
images: the squared error over the predicted variance, of all pixels and by bins of predicted
variance, two to a decade; the coverage of central intervals; and the mean predicted variance of
pixels at edges, the tenth where the clean image's gradient is largest, over that of background
pixels, the half where it is least.
"""

import argparse
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks import images
from benchmarks.common import table
from benchmarks.images import SIGMAS, plt
from ozaki.denoising import denoise
from ozaki.diagnostics.calibration import LEVELS

LEAST_SHARE = 0.01  # of the pixels that a bin holds
PER_DECADE = 2
BLOCK = 250


def bins(predicted: Tensor, observed: Tensor) -> list[dict[str, float]]:
    """Share, mean predicted and mean observed of pixels by predicted variance, two to a decade."""
    place = (predicted.log10() * PER_DECADE).floor().long()
    found = []
    for level in place.unique().tolist():
        here = place == level
        found.append(
            {
                "from": 10 ** (level / PER_DECADE),
                "share": float(here.double().mean()),
                "predicted": float(predicted[here].mean()),
                "observed": float(observed[here].mean()),
            }
        )
    return found


def steepness(clean: Tensor) -> Tensor:
    """The size of the gradient at each pixel, of the mean channel, (n, 1, H, W)."""
    down, right = torch.gradient(clean.mean(1, keepdim=True), dim=(2, 3))
    return (down.square() + right.square()).sqrt()


@torch.no_grad()
def row(name: str, estimator, clean: Tensor, sigma: float, seed: int) -> dict:
    """The figures of one data set at one σ."""
    generator = torch.Generator().manual_seed(seed)
    noisy = images.noised(clean, sigma, generator)
    parts = [denoise(estimator, part, sigma=sigma) for part in noisy.split(BLOCK)]
    variance = torch.cat([p.variance for p in parts]).double() / sigma**2
    square = (torch.cat([p.mean for p in parts]) - clean).double().square() / sigma**2
    slope = steepness(clean).expand_as(clean)
    edge = slope >= slope.flatten(1).quantile(0.9, 1).clamp_min(1e-6).view(-1, 1, 1, 1)
    flat = slope <= slope.flatten(1).quantile(0.5, 1).view(-1, 1, 1, 1)
    inside = (square / variance).sqrt()
    quantiles = [2**0.5 * float(torch.erfinv(torch.tensor(level))) for level in LEVELS]
    found = bins(variance.flatten(), square.flatten())
    held = [b["observed"] / b["predicted"] for b in found if b["share"] >= LEAST_SHARE]
    return {
        "data": name,
        "sigma": sigma,
        "ratio": float(square.mean() / variance.mean()),
        "least": min(held),
        "most": max(held),
        "mean_variance": float(variance.mean()) * sigma**2,
        "edge": float(variance[edge].mean()) * sigma**2,
        "background": float(variance[flat].mean()) * sigma**2,
        "psnr": float(-10 * (square.mean() * sigma**2).log10()),
        **{
            f"inside_{level}": float((inside <= q).double().mean())
            for level, q in zip(LEVELS, quantiles, strict=True)
        },
        "bins": found,
    }


def bars(rows: list[dict]) -> list[dict]:
    """What was asked, and what was found."""
    asked = []
    for r in rows:
        where = f"{r['data']}, sigma {r['sigma']:g}"
        asked += [
            {"bar": f"{where}: r²/c of all", "asked": "0.95 to 1.05", "measured": r["ratio"]},
            {"bar": f"{where}: least of a bin", "asked": ">= 0.85", "measured": r["least"]},
            {"bar": f"{where}: most of a bin", "asked": "<= 1.15", "measured": r["most"]},
            {
                "bar": f"{where}: variance at edges over background",
                "asked": "> 1",
                "measured": r["edge"] / r["background"],
            },
        ]
    return asked


def draw_calibration(rows: list[dict], args) -> None:
    """Observed over predicted variance, by predicted variance."""
    names = sorted({r["data"] for r in rows}, reverse=True)
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.axhspan(0.85, 1.15, color="0.92", lw=0)
        axis.axhline(1, color="0.5", lw=0.8)
        for r in (r for r in rows if r["data"] == name):
            held = [b for b in r["bins"] if b["share"] >= LEAST_SHARE]
            x = [b["predicted"] for b in held]
            y = [b["observed"] / b["predicted"] for b in held]
            axis.plot(x, y, "o-", ms=4, lw=1, label=f"σ = {r['sigma']:g}")
        axis.set(xscale="log", title=name, ylim=(0.4, 1.6))
        axis.set(xlabel="predicted variance, of the noise's", ylabel="squared error / predicted")
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    images.save(figure, args, "images_calibration")


@torch.no_grad()
def draw_images(name: str, estimator, clean: Tensor, args, count: int = 6) -> None:
    """Noisy image, mean and standard deviation for each σ, a column an image."""
    shown = clean[:count]
    lines = [("clean", shown, None)]
    generator = torch.Generator().manual_seed(args.seed)
    for sigma in SIGMAS:
        noisy = images.noised(shown, sigma, generator)
        posterior = denoise(estimator, noisy, sigma=sigma)
        deviation = posterior.standard_deviation.mean(1, keepdim=True)
        lines += [
            (f"noisy, σ = {sigma:g}", noisy, None),
            ("mean", posterior.mean, None),
            ("deviation", deviation, float(deviation.max())),
        ]
    figure, axes = plt.subplots(len(lines), count, figsize=(count, 1.02 * len(lines)))
    for line, (label, pictures, largest) in zip(axes, lines, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            values = picture.clamp(0, 1) if largest is None else picture / largest
            axis.imshow(values.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        of = "" if largest is None else f"\n0 to {largest:.2g}"
        line[0].set_ylabel(label + of, rotation=0, ha="right", va="center", fontsize=8)
    images.save(figure, args, f"images_{name}")


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--only", nargs="*", default=[""], help="parts of data sets' names")
    args = images.options(__doc__ or "", own)
    sets = {"mnist": lambda split: images.digits(args, split)[0]}
    sets["cifar10"] = lambda split: images.photographs(args, split)
    sets = {name: load for name, load in sets.items() if any(part in name for part in args.only)}
    rows = []
    for name, load in sets.items():
        train, test = load("train"), load("test")
        estimator = images.model(args, name, train)
        clean = test[: args.setting.test]
        mine = [row(name, estimator, clean, sigma, args.seed) for sigma in SIGMAS]
        for r in mine:
            r["training_seconds"] = images.trained_in(args, name)
        rows += mine
        table(mine, [k for k in mine[0] if k != "bins"])
        draw_images(name, estimator, clean, args)
    draw_calibration(rows, args)
    found = bars(rows)
    for name in sets:
        means = [r["mean_variance"] for r in rows if r["data"] == name]
        growth = min(b / a for a, b in pairwise(means))
        found.append(
            {"bar": f"{name}: least growth of variance with σ", "asked": "> 1", "measured": growth}
        )
    images.write("images_covariance", args, rows, found)


if __name__ == "__main__":
    main()
