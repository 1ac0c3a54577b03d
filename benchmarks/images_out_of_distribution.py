"""What s1 and s2 say of images that are no digits (the outlook of the paper).

    python -m benchmarks.images_out_of_distribution [--quick | --gpu] [--data D] [--models M]

From one pass over an image with noise of σ: the size of s1, the trace of the posterior covariance
and its largest eigenvalue. How strange an image is, is how far the logarithm of a figure lies from
its mean over 2,000 training digits, in standard deviations; of all three together, Mahalanobis's
distance. Against held-out digits stand photographs made grey and 28 × 28, digits with their pixels
in another order (one for all), and digits with white and black exchanged. The area under the
receiver's curve is beside that of the error of reconstruction, which reads the clean image too.
"""

import torch
from torch import Tensor

from benchmarks import images
from benchmarks.common import table
from benchmarks.images import SIGMAS
from ozaki.denoising import denoise

BLOCK, TRAINING = 250, 2000
NAMES = ("size of s1", "trace of C", "top eigenvalue of C")


@torch.no_grad()
def figures(estimator, clean: Tensor, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logarithms of the three figures (n, 3), and the error of reconstruction (n,)."""
    generator = torch.Generator().manual_seed(seed)
    found, errors = [], []
    for part in clean.split(BLOCK):
        noisy = images.noised(part, sigma, generator)
        posterior = denoise(estimator, noisy, sigma=sigma)
        moved = (posterior.mean - noisy).flatten(1).norm(dim=1) / sigma
        trace = posterior.variance.flatten(1).sum(1) / sigma**2
        top = posterior.principal_components(1)[0][:, 0] / sigma**2
        found.append(torch.stack([moved, trace, top], 1).log())
        errors.append((posterior.mean - part).flatten(1).norm(dim=1))
    return torch.cat(found).double(), torch.cat(errors).double()


def main() -> None:
    args = images.options(__doc__ or "")
    train, test = images.digits(args)[0], images.digits(args, "test")[0][: args.setting.test]
    estimator = images.model(args, "mnist", train)
    generator = torch.Generator().manual_seed(args.seed)
    order = torch.randperm(28 * 28, generator=generator)
    others = {
        "photographs": images.grey(images.photographs(args, "test"))[: args.setting.test],
        "shuffled": test.flatten(1)[:, order].reshape(test.shape),
        "inverted": 1 - test,
    }
    some = train[: 200 if args.quick else TRAINING]
    rows = []
    for sigma in SIGMAS:
        known, _ = figures(estimator, some, sigma, args.seed + 1)
        mean, inverse = known.mean(0), torch.linalg.inv(known.mT.cov())

        def strange(x: Tensor, mean: Tensor = mean, inverse: Tensor = inverse) -> Tensor:
            off = x - mean
            return torch.cat([off.abs(), ((off @ inverse) * off).sum(1, keepdim=True)], 1)

        inside, error = figures(estimator, test, sigma, args.seed)
        for name, clean in others.items():
            outside, its = figures(estimator, clean, sigma, args.seed)
            pairs = zip(strange(inside).mT, strange(outside).mT, strict=True)
            found = [images.auroc(a, b) for a, b in pairs]
            rows.append(
                {
                    "sigma": sigma,
                    "against": name,
                    **dict(zip((*NAMES, "all three"), found, strict=True)),
                    "reconstruction": images.auroc(error, its),
                }
            )
    table(rows, list(rows[0]))
    bars = [
        {
            "bar": f"AUROC of all three, sigma {r['sigma']:g}, {r['against']}",
            "asked": "as it comes",
            "measured": r["all three"],
        }
        for r in rows
    ]
    images.write("images_out_of_distribution", args, rows, bars)


if __name__ == "__main__":
    main()
