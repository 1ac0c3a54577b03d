"""The command line: ``ozaki demo`` (floor 9).

A command is a function here with ``@app.command()``; what it says goes through `typer.echo`.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ozaki.datasets import OLD_FAITHFUL_COLUMNS, old_faithful
from ozaki.diagnostics import sampler_test, save, summary
from ozaki.kernels.pyro_kernel import ScoreOzakiKernel
from ozaki.mcmc import MCMC
from ozaki.report import write_report
from ozaki.scores.training import DSMTrainer

USAGE_ERROR = 2
QUICK = {"max_steps": 200, "num_samples": 200, "warmup_steps": 200, "thinning": 1}
# the eruptions have two modes: neighbouring draws are alike, so one in five is kept
FULL = {"max_steps": 2500, "num_samples": 1000, "warmup_steps": 1000, "thinning": 5}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Second-order scores of data, models and formulas, and the chains that walk on them.",
)


def _say_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"ozaki {version('ozaki')}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version."),
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("ozaki-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Makes the run reproducible.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, and rough.")] = False,
) -> None:
    """Learn Old Faithful's eruptions, draw four chains, and say whether to trust them.

    Writes report.html, draws.nc and estimator/ into the folder.
    """
    _prepare(out, force)
    size = QUICK if quick else FULL
    data = old_faithful()
    typer.echo(f"Training two score networks on {len(data)} eruptions of Old Faithful.")
    began = time.perf_counter()
    estimator = DSMTrainer(seed=seed, max_steps=size["max_steps"]).fit(data)
    typer.echo(f"Trained in {time.perf_counter() - began:.0f} s. Drawing four chains.")
    began = time.perf_counter()
    mcmc = MCMC(
        ScoreOzakiKernel(estimator),
        num_samples=size["num_samples"],
        warmup_steps=size["warmup_steps"],
        thinning=size["thinning"],
        seed=seed,
    )
    mcmc.run()
    typer.echo(f"Drawn in {time.perf_counter() - began:.0f} s.")
    idata = mcmc.to_inference_data()
    eruption, waiting = estimator.noise_scale.tolist()
    save(idata, out / "draws.nc")
    estimator.save(out / "estimator", overwrite=True)
    judged = write_report(
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
    typer.echo(f"\n{summary(idata).round(3).to_string()}\n\n{judged.headline}")
    for problem in judged.problems:
        typer.echo(f"- {problem.what}. {problem.remedy}")
    typer.echo(f"\nOpen {out / 'report.html'}; beside it are draws.nc and estimator/.")


def _prepare(out: Path, force: bool) -> None:
    """Make the folder, or refuse before any work is done."""
    if out.exists() and not out.is_dir():
        _refuse(f"{out} is a file; give --out a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        _refuse(
            f"{out} is not empty, and nothing in it was changed; add --force to replace the "
            "earlier demo, or choose another folder with --out"
        )
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        _refuse(f"{out} could not be made ({error.strerror}); choose another folder with --out")


def _refuse(message: str) -> NoReturn:
    typer.echo(f"ozaki: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)


def main() -> None:
    """Run the command line."""
    app(prog_name="ozaki")
