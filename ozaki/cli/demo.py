"""``ozaki demo`` goes from the data of Old Faithful to a report."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ozaki.cli.application import Config, Json, Seed, command, drawn, free, judged, refuse
from ozaki.datasets import OLD_FAITHFUL_COLUMNS, old_faithful
from ozaki.diagnostics import sampler_test, save
from ozaki.kernels.ozaki_kernel import ScoreOzakiKernel
from ozaki.report import write_report
from ozaki.sampling.mcmc import MCMC
from ozaki.scores.learned.trainer import DSMTrainer

QUICK = {"max_steps": 200, "num_samples": 200, "warmup_steps": 200, "thinning": 1}
# the eruptions have two modes, and neighbouring draws are alike: one in five is kept
FULL = {"max_steps": 2500, "num_samples": 1000, "warmup_steps": 1000, "thinning": 5}


@command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("ozaki-demo"),
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, and rough.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Learn Old Faithful's eruptions, draw four chains, and say whether to trust them.

    Writes report.html, draws.nc and estimator/ into the folder. The exit status is 0 also where
    the draws are not to be trusted: it is a demonstration.

    For example: ozaki demo --quick --out try
    """
    free(out, force=True)  # reserved against another demo; what the folder holds is checked next
    _prepare(out, force)
    free(out / WRITTEN[0], force=True)
    size = QUICK if quick else FULL
    data = old_faithful()
    typer.echo(
        f"Training two score networks on {len(data)} eruptions of Old Faithful.", err=as_json
    )
    began = time.perf_counter()
    estimator = DSMTrainer(seed=seed, max_steps=size["max_steps"]).fit(data)
    seconds = time.perf_counter() - began
    typer.echo(f"Trained in {seconds:.0f} s. Drawing four chains.", err=as_json)
    began = time.perf_counter()
    mcmc = MCMC(
        ScoreOzakiKernel(estimator),
        num_samples=size["num_samples"],
        warmup_steps=size["warmup_steps"],
        thinning=size["thinning"],
        seed=seed,
    )
    idata = drawn(mcmc)
    typer.echo(f"Drawn in {time.perf_counter() - began:.0f} s.", err=as_json)
    eruption, waiting = estimator.noise_scale.tolist()
    save(idata, out / "draws.nc")
    estimator.save(out / "estimator", overwrite=True)
    verdict = write_report(
        out / "report.html",
        idata,
        title="Old Faithful: eruptions and waits",
        law=f"the law of the eruptions smoothed by Gaussian noise, whose standard deviation is "
        f"{eruption:.2f} min in their length and {waiting:.1f} min in the wait",
        data=data,
        data_columns=[column.replace("_", ", ") for column in OLD_FAITHFUL_COLUMNS],
        estimator_metrics=estimator.metrics,
        stein=sampler_test(estimator, mcmc.get_samples(group_by_chain=True)["x"]),
    )
    judged(idata, verdict, as_json, [str(out / n) for n in WRITTEN], fails=False)
    if not as_json:
        typer.echo(f"\nOpen {out / 'report.html'}; beside it are draws.nc and estimator/.")


WRITTEN = ("report.html", "draws.nc", "estimator")


def _prepare(out: Path, force: bool) -> None:
    """Make the folder, or refuse before any work is done."""
    if out.exists() and not out.is_dir():
        refuse(f"{out} is a file; give --out a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        refuse(
            f"{out} is not empty, and nothing in it was changed; add --force to replace the "
            "earlier demo, or choose another folder with --out"
        )
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        refuse(f"{out} could not be made ({error.strerror}); choose another folder with --out")
