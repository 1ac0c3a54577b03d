"""Whether two trees give the same bits: digests of draws, estimators, denoised points and reports.

    python -m benchmarks.digests --out FOLDER                 writes FOLDER/digests.json
    python -m benchmarks.digests --out FOLDER --against FILE  and names what differs from FILE

Seeds are fixed. Digests are of one machine, one number of threads and one torch: make both files on
the machine that compares them.
"""

import argparse
import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import ozaki
from benchmarks.common import options, table, write
from ozaki import MCMC, DSMTrainer, ScoreDistribution, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.scores import (
    DenoiserScore,
    DistributionScore,
    GaussianMixtureScore,
    GaussianScore,
    LogDensityScore,
)

FEW = {"num_samples": 40, "warmup_steps": 80, "num_chains": 3, "disable_progbar": True}
SMALL: dict[str, Any] = {
    "max_steps": 60, "batch_size": 64, "width": 16, "seed": 1, "progress": False,
}  # fmt: skip
KERNELS: dict[str, tuple[type, dict[str, Any]]] = {
    "langevin": (ScoreLangevinKernel, {}),
    "langevin none": (ScoreLangevinKernel, {"metropolis": "none"}),
    "langevin given": (ScoreLangevinKernel, {"step_size": 0.3, "jitter": 0.2}),
    "ozaki": (ScoreOzakiKernel, {}),
    "ozaki diagonal": (ScoreOzakiKernel, {"curvature": "diagonal"}),
    "ozaki dense": (ScoreOzakiKernel, {"curvature": "dense"}),
    "ozaki diagonal frozen": (ScoreOzakiKernel, {"curvature": "diagonal", "frozen": True}),
    "ozaki dense frozen": (ScoreOzakiKernel, {"curvature": "dense", "frozen": True}),
}
TRAINERS: dict[str, dict[str, Any]] = {
    "one": {"sigma": 0.3},
    "dsm": {"sigma": 0.3, "objective": "dsm", "curvature": None},
    "d2sm": {"sigma": 0.3, "objective": "d2sm", "joint": True},
    "ocm": {"sigma": 0.3, "objective": "ocm", "shared": True},
    "range": {"sigma": (0.1, 1.0), "curvature": "low_rank", "rank": 1, "signed": False,
              "objective": "likelihood"},
    "margins": {"sigma": 0.5, "curvature": "low_rank", "rank": 2, "signed": False,
                "objective": "margins", "standardize": "scalar"},
    "order 4": {"sigma": 0.6, "order": 4},
    "baseline": {"sigma": 0.3, "baseline": True},
}  # fmt: skip

mixture = GaussianMixtureScore(
    torch.tensor([[0.0, 0.0], [3.0, 1.0]]),
    torch.eye(2).repeat(2, 1, 1),
    torch.tensor([0.4, 0.6]),
)
normal = GaussianScore(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.8], [0.8, 2.0]]))
formula = LogDensityScore(lambda x: -(x**4).sum() - x[0] * x[1], (2,), dtype=torch.float64)


def regression(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.deterministic("twice", 2 * scale)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, scale + 0.1), obs=y)


def schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def labelled(y: torch.Tensor) -> None:
    centre = pyro.sample("centre", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(centre[label], 1.0), obs=y)


GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(20, 2, generator=GENERATOR)
Y = X @ torch.tensor([1.0, -2.0]) + torch.randn(20, generator=GENERATOR)
SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)


def digest(*values: Any) -> str:
    """Of tensors, arrays and text."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().contiguous().numpy()
        found.update(value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def of_run(mcmc: MCMC) -> str:
    """Of the draws, and of what ArviZ reads."""
    samples = mcmc.get_samples(group_by_chain=True)
    idata = mcmc.to_inference_data()
    stats = [np.asarray(idata["sample_stats"][n]) for n in sorted(idata["sample_stats"].data_vars)]
    return digest(*(samples[name] for name in sorted(samples)), *stats)


def of_page(path: Path) -> str:
    """Of a report, but for versions."""
    text = re.sub(r"[0-9]+\.[0-9]+\.[0-9]+[+\w.]*", "", path.read_text())
    return digest(text.encode())


def walked(kernel: Any, *args: Any, seed: int = 2, **more: Any) -> MCMC:
    mcmc = MCMC(kernel, **{**FEW, "seed": seed, **more})
    mcmc.run(*args)
    return mcmc


def of_draws(compiled: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    laws: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "mixture": (mixture, ()),
        "formula": (formula, ()),
        "law": (dist.Gamma(torch.tensor([2.0, 3.0]), 1.0), ()),
        "regression": (regression, (X, Y)),
        "schools": (schools, SCHOOLS),
        "labelled": (labelled, (Y,)),
    }
    for law, (model, args) in laws.items():
        for name, (kernel, more) in KERNELS.items():
            yield (
                f"{law} · {name}",
                lambda m=model, a=args, k=kernel, o=more: of_run(walked(k(m, **o), *a)),
            )
    if compiled:
        for law in ("mixture", "formula", "regression"):
            model, args = laws[law]
            for name, (kernel, more) in KERNELS.items():
                yield (
                    f"{law} · {name} · compiled",
                    lambda m=model, a=args, k=kernel, o=more: of_run(
                        walked(k(m, compile=True, **o), *a, num_samples=200)
                    ),
                )


def of_runs(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """What else a run does: thinning, stores, checkpoints, extension, step halving, a page."""

    def stored() -> str:
        return of_run(walked(ScoreOzakiKernel(mixture), store=folder / "draws.zarr", thinning=2))

    def stopped() -> str:
        kernel = ScoreOzakiKernel(regression)
        more = {"checkpoint": folder / "run", "checkpoint_every": 30}

        def stop(kernel: Any, samples: Any, stage: str, i: int) -> None:
            if stage == "Sample" and i == 15:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            walked(kernel, X, Y, hook_fn=stop, **more)
        return of_run(walked(kernel, X, Y, **more))

    def extended() -> str:
        mcmc = walked(ScoreOzakiKernel(normal))
        mcmc.extend(25)
        return of_run(mcmc)

    def halved() -> str:
        mcmc = walked(ScoreLangevinKernel(normal, metropolis="none"), num_samples=200)
        return digest(np.asarray(mcmc.step_bias(), dtype=float))

    def page(model: Any, *args: Any) -> Callable[[], str]:
        def made() -> str:
            mcmc = walked(ScoreOzakiKernel(model), *args, num_samples=120)
            mcmc.report(folder / "page.html")
            return of_page(folder / "page.html")

        return made

    def guided() -> str:
        return of_run(walked(ScoreOzakiKernel(normal, score=mixture)))

    yield "thinned in a store", stored
    yield "stopped and taken up", stopped
    yield "extended", extended
    yield "step halving", halved
    yield "proposal of another score", guided
    yield "page · mixture", page(mixture)
    yield "page · regression", page(regression, X, Y)


def of_estimators(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    rows = ozaki.datasets.old_faithful()
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5))

    def trained(options: dict[str, Any], data: Any = rows) -> Any:
        return DSMTrainer(**{**SMALL, **options}).fit(data)

    def of_weights(estimator: Any, name: str) -> str:
        estimator.save(folder / name, overwrite=True)
        kept = sorted((folder / name).iterdir())
        settings = re.sub(
            r'"(version|ozaki)": "[^"]*"', "", (folder / name / "estimator.json").read_text()
        )
        return digest(
            *estimator.network.state_dict().values(),
            settings.encode(),
            *(path.read_bytes() for path in kept if path.suffix == ".safetensors"),
        )

    made: dict[str, Any] = {}

    def named(name: str) -> Any:
        if name not in made:
            made[name] = trained(TRAINERS[name])
        return made[name]

    for name in TRAINERS:
        yield f"estimator · {name}", lambda n=name: of_weights(named(n), n.replace(" ", "-"))
    loader = torch.utils.data.DataLoader(torch.as_tensor(np.asarray(rows)), batch_size=50)
    yield "estimator · loader", lambda: of_weights(trained({"sigma": 0.3}, loader), "loader")
    yield (
        "estimator · images",
        lambda: of_weights(
            trained({"sigma": 0.3, "network": "unet", "max_steps": 6, "width": 8}, images), "unet"
        ),
    )

    def checkpointed() -> str:
        where = folder / "training"
        more = {**SMALL, "sigma": 0.3, "checkpoint": where, "checkpoint_every": 20}
        DSMTrainer(**more).fit(rows)
        (settings,) = [p for p in where.iterdir() if p.suffix == ".safetensors"]
        return of_weights(DSMTrainer(**more).fit(rows, resume=True), "resumed") + str(
            settings.stat().st_size
        )

    yield "estimator · checkpoint", checkpointed
    yield "walk · learned", lambda: of_run(walked(ScoreOzakiKernel(named("one"))))
    yield "walk · range", lambda: of_run(walked(ScoreOzakiKernel(named("range").at(0.4))))

    def prior() -> str:
        def model(y: torch.Tensor) -> None:
            x = pyro.sample("x", ScoreDistribution(named("one")))
            scale = pyro.sample("scale", dist.HalfNormal(2.0))
            pyro.sample("y", dist.Normal(x[..., 1], scale), obs=y)

        return of_run(walked(ScoreOzakiKernel(model), torch.tensor(70.0)))

    yield "walk · learned prior", prior

    def page() -> str:
        walked(ScoreOzakiKernel(named("one")), num_samples=120).report(folder / "page.html")
        return of_page(folder / "page.html")

    yield "page · learned", page

    def denoised() -> str:
        clean = torch.as_tensor(np.asarray(rows), dtype=torch.float32)[:5]
        found = ozaki.denoise(named("range"), clean, sigma=0.5)
        values, vectors = found.principal_components(2)
        drawn = found.sample(3, torch.Generator().manual_seed(4))
        return digest(found.mean, found.variance, values, vectors, drawn)

    yield "denoised", denoised
    yield "annealed", lambda: digest(ozaki.anneal(named("range"), 30, seed=4))

    def compared() -> str:
        found = ozaki.scores.compare(named("range").at(0.5), rows)
        return digest(str(found).encode())

    yield "compared", compared
    shrink = DenoiserScore(lambda x, sigma: x / 1.25, 0.5, (2,))
    yield "denoiser", lambda: digest(*shrink.expand(torch.ones(3, 2)).gradient)
    law = DistributionScore(dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    yield (
        "distribution",
        lambda: digest(law.start(4, torch.Generator().manual_seed(1))),
    )


def main() -> None:
    more = argparse.ArgumentParser(add_help=False)
    more.add_argument("--against", type=Path, help="digests.json of another tree")
    args = options(__doc__ or "", more)
    torch.set_num_threads(1)
    before = {}
    if args.against:
        before = {
            row["what"]: row["digest"] for row in json.loads(args.against.read_text())["rows"]
        }
    rows = []
    with tempfile.TemporaryDirectory() as where, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(where)
        kinds = [of_draws(compiled=not args.quick), of_runs(folder), of_estimators(folder)]
        for what, make in (pair for kind in kinds for pair in kind):
            try:
                torch.manual_seed(0)
                found = make()
            except ValueError as error:
                found = f"refused: {digest(str(error).encode())}"
            same = "" if what not in before else "yes" if before[what] == found else "NO"
            rows.append({"what": what, "digest": found, "same": same})
            print(f"{what:45} {found} {same}", flush=True)
    differ = [row["what"] for row in rows if row["same"] == "NO"]
    bars = []
    if before:
        bars = [{"bar": "the same bits as before", "asked": 0, "measured": len(differ)}]
    table([row for row in rows if row["same"] == "NO"], ["what", "digest"])
    write("digests", args, rows, bars)


if __name__ == "__main__":
    main()
