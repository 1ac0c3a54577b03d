"""Principal components of what a denoiser does not know (Fig. 4 of the paper).

    python -m benchmarks.images_components [--quick | --gpu] [--seed N] [--data D] [--models M]

The share of the squared error of held-out MNIST digits that lies along the first k components of
each digit's own posterior covariance, beside that along the first k components of the errors of
5,000 training digits at the same σ, which are the same for all.
"""

import torch
from torch import Tensor

from benchmarks import images
from benchmarks.common import table
from benchmarks.images import RANK, SIGMAS, plt
from ozaki.denoising import denoise

BLOCK, TRAINING = 250, 5000
COUNTS = (1, 2, 3, 5, 8)


@torch.no_grad()
def errors(estimator, clean: Tensor, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    """Clean less mean (n, D), and each one's error along its own components, (n, RANK)."""
    generator = torch.Generator().manual_seed(seed)
    found, along = [], []
    for part in clean.split(BLOCK):
        posterior = denoise(estimator, images.noised(part, sigma, generator), sigma=sigma)
        error = (part - posterior.mean).flatten(1)
        directions = posterior.principal_components(RANK)[1].flatten(2)
        found.append(error)
        along.append((directions @ error.unsqueeze(-1)).squeeze(-1))
    return torch.cat(found).double(), torch.cat(along).double()


def rows(estimator, train: Tensor, test: Tensor, sigma: float, seed: int) -> list[dict]:
    """The shares at one σ, a row for each k."""
    general, _ = errors(estimator, train, sigma, seed + 1)
    axes = torch.linalg.eigh(general.mT @ general / len(general))[1].flip(-1)
    error, own = errors(estimator, test, sigma, seed)
    total = error.square().sum()
    return [
        {
            "sigma": sigma,
            "k": k,
            "own": float(own[:, :k].square().sum() / total),
            "pca": float((error @ axes[:, :k]).square().sum() / total),
        }
        for k in COUNTS
    ]


@torch.no_grad()
def draw(estimator, test: Tensor, args, sigma: float = 0.5, count: int = 6, k: int = 4) -> None:
    """A row a digit: clean, noisy, mean, deviation, and steps along the first components."""
    generator = torch.Generator().manual_seed(args.seed)
    clean = test[:count]
    noisy = images.noised(clean, sigma, generator)
    posterior = denoise(estimator, noisy, sigma=sigma)
    variances, directions = posterior.principal_components(k)
    step = 2 * variances.sqrt()[..., None, None, None] * directions
    columns = {
        "clean": clean,
        f"noisy, σ = {sigma:g}": noisy,
        "mean": posterior.mean,
        "deviation": posterior.standard_deviation,
    }
    signed = {f"component {i + 1}": directions[:, i] for i in range(k)}
    moved = {
        "mean − 2 sd\nalong 1": posterior.mean - step[:, 0],
        "mean + 2 sd\nalong 1": posterior.mean + step[:, 0],
    }
    width = len(columns) + len(signed) + len(moved)
    figure, axes = plt.subplots(count, width, figsize=(width, 1.05 * count))
    for j, (name, pictures) in enumerate({**columns, **signed, **moved}.items()):
        axes[0, j].set_title(name, fontsize=7)
        for axis, picture in zip(axes[:, j], pictures, strict=True):
            axis.set(xticks=[], yticks=[])
            if name in signed:
                largest = float(picture.abs().max())
                axis.imshow(picture[0], cmap="RdBu_r", vmin=-largest, vmax=largest)
            else:
                largest = float(picture.max()) if name == "deviation" else 1.0
                axis.imshow(picture[0], cmap="gray", vmin=0, vmax=largest)
    images.save(figure, args, "images_components")


def main() -> None:
    args = images.options(__doc__ or "")
    train, test = images.digits(args)[0], images.digits(args, "test")[0][: args.setting.test]
    estimator = images.model(args, "mnist", train)
    some = train[: 300 if args.quick else TRAINING]
    found = [r for sigma in SIGMAS for r in rows(estimator, some, test, sigma, args.seed)]
    table(found, list(found[0]))
    draw(estimator, test, args)
    bars = [
        {
            "bar": f"sigma {sigma:g}: least of own / PCA's share of the error over k",
            "asked": "> 1",
            "measured": min(r["own"] / r["pca"] for r in found if r["sigma"] == sigma),
        }
        for sigma in SIGMAS
    ]
    images.write("images_components", args, found, bars)


if __name__ == "__main__":
    main()
