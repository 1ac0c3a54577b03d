"""What the image benchmarks share: data, models kept in a folder, a classifier, pictures.

Models are trained once for a setting and kept in `--models`; a benchmark that finds one uses it.
There are three settings: `--quick`, minutes on two cores, whose figures mean little; the one that
two cores train in twenty minutes; and `--gpu`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

from benchmarks import common
from benchmarks.common import RESULTS
from ozaki.datasets import cifar10_subset, mnist
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.trainer import DSMTrainer

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FIGURES = Path(__file__).parent / "figures"
SIGMAS = (0.3, 0.5, 1.0)  # of intensities in [0, 1]
SIGMA_RANGE = (0.2, 1.2)  # one model serves all
RANK = 20


class Setting(NamedTuple):
    """How much is spent.

    Attributes:
        name: of the results and models.
        network, steps, batch_size, precision: of a model, as DSMTrainer's.
        device: where.
        epochs: of the classifier.
        test: held-out images that are looked at.
    """

    name: str
    network: str
    steps: int
    batch_size: int
    precision: str
    device: str
    epochs: int
    test: int


QUICK = Setting("quick", "unet", 150, 16, "bf16-mixed", "cpu", 1, 100)
CORES = Setting("cores", "unet", 3000, 64, "bf16-mixed", "cpu", 4, 1000)
GPU = Setting("gpu", "unet_large", 40_000, 256, "bf16-mixed", "cuda", 12, 10_000)


def options(description: str, *parents: argparse.ArgumentParser) -> argparse.Namespace:
    """Those of every benchmark, and where data and models lie; `args.setting` is a `Setting`."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--data", type=Path, default=Path("data"), help="holds mnist/ and cifar10/")
    own.add_argument("--models", type=Path, default=Path("build/models"), help="kept there")
    own.add_argument("--gpu", action="store_true", help="large networks, on a GPU")
    args = common.options(description, own, *parents)
    args.setting = QUICK if args.quick else GPU if args.gpu else CORES
    return args


def write(name: str, args: argparse.Namespace, rows: list[dict], bars: list[dict]) -> None:
    """The JSON of this setting."""
    common.write(name + "-gpu" * args.gpu, args, rows, bars)


def figures(args: argparse.Namespace) -> Path:
    """Where pictures go: beside the committed ones only if the figures mean something."""
    folder = FIGURES if args.out == RESULTS and not args.quick else args.out
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(figure: Any, args: argparse.Namespace, name: str) -> None:
    """Write a picture; its date is left out, so that the same figures give the same file."""
    path = figures(args) / f"{name}{'-gpu' * args.gpu}.svg"
    figure.savefig(path, metadata={"Date": None}, dpi=100, bbox_inches="tight")
    plt.close(figure)


def digits(args: argparse.Namespace, split: str = "train") -> tuple[Tensor, Tensor]:
    """MNIST, (N, 1, 28, 28) in [0, 1], and labels."""
    images, labels = mnist(args.data / "mnist", split)
    return images.float(), labels


def photographs(args: argparse.Namespace, split: str = "train") -> Tensor:
    """The CIFAR-10 subset, (N, 3, 32, 32) in [0, 1]."""
    return cifar10_subset(args.data / "cifar10", split)[0].float()


def grey(photos: Tensor) -> Tensor:
    """Photographs as images of the digits' shape: the middle 28 × 28, of one channel."""
    return photos.mean(1, keepdim=True)[..., 2:30, 2:30]


def pooled(images: Tensor) -> Tensor:
    """28 × 28 made 8 × 8."""
    return avg_pool2d(pad(images, (2, 2, 2, 2)), 4)


def noised(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Images with noise."""
    return images + sigma * torch.randn(images.shape, generator=generator)


def model(args: argparse.Namespace, name: str, images: Tensor, **changes: Any) -> ScoreEstimator:
    """A noise-conditional model with the whole posterior covariance, trained unless it is there.

    Args:
        args: of `options`.
        name: of the model.
        images: to train on, if need be.
        changes: of the trainer's options.
    """
    setting: Setting = args.setting
    folder = args.models / f"{name}-{setting.name}-{args.seed}"
    asked = {
        "curvature": "low_rank",
        "rank": RANK,
        "signed": False,
        "objective": "margins",
        "network": setting.network,
        "max_steps": setting.steps,
        "batch_size": setting.batch_size,
        "precision": setting.precision,
        # σ is of the order of the spread: two digits with a noise each teach more than one with ±z
        "variance_reduction": False,
        **changes,
    }
    told = folder / "asked.json"
    if told.exists() and json.loads(told.read_text())["asked"] == asked:
        return ScoreEstimator.load(folder / "estimator")
    trainer = DSMTrainer(
        SIGMA_RANGE, seed=args.seed, accelerator=setting.device, progress=True, **asked
    )
    began = time.perf_counter()
    estimator = trainer.fit(images).to("cpu")
    seconds = time.perf_counter() - began
    print(f"{name} trained in {seconds:.0f} s")
    estimator.save(folder / "estimator", overwrite=True)
    told.write_text(json.dumps({"asked": asked, "seconds": seconds}))
    return estimator


def trained_in(args: argparse.Namespace, name: str) -> float:
    """How long the training of a model took, in seconds."""
    folder = args.models / f"{name}-{args.setting.name}-{args.seed}"
    return float(json.loads((folder / "asked.json").read_text())["seconds"])


class Classifier(nn.Sequential):
    """A small convolutional network for digits."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 5, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(128 * 9, 10),
        )


def classifier(args: argparse.Namespace) -> tuple[Classifier, float]:
    """A classifier of digits, and its accuracy on the test set."""
    path = args.models / f"classifier-{args.setting.name}-{args.seed}.pt"
    net = Classifier()
    test, truth = digits(args, "test")
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
    else:
        _train(net, *digits(args), args)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), path)
    net.eval()
    found = torch.cat([predict(net, part)[0] for part in test.split(1000)])
    return net, float((found == truth).double().mean())


def _train(net: Classifier, images: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """One cycle of Adam on images shifted by up to two pixels."""
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    device, epochs, size = args.setting.device, args.setting.epochs, 128
    net.to(device).train()
    steps = epochs * (len(images) // size)
    adam = torch.optim.Adam(net.parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(size)[: len(images) // size]:
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            x = images[rows].roll((down, right), (2, 3)).to(device)
            loss = cross_entropy(net(x), labels[rows].to(device))
            adam.zero_grad()
            loss.backward()
            adam.step()
            cycle.step()
    net.cpu()


@torch.no_grad()
def predict(net: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, and the probability given to each."""
    confidence, label = net(images).softmax(-1).max(-1)
    return label, confidence


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance that one from outside ranks above one from inside; ties count half."""
    both = torch.cat([inside, outside]).double()
    _, inverse, counts = both.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]
    n = len(outside)
    return float((ranks[len(inside) :].sum() - n * (n + 1) / 2) / (n * len(inside)))


def energy_distance(one: Tensor, other: Tensor) -> float:
    """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ of two clouds (n, D): 0 for one law, else above.

    Székely and Rizzo, "Energy statistics", 2013; as a U-statistic, so that it may be below 0.
    """
    n, m = len(one), len(other)
    within = torch.cdist(one, one).sum() / (n * (n - 1))
    without = torch.cdist(other, other).sum() / (m * (m - 1))
    return float(2 * torch.cdist(one, other).mean() - within - without)
