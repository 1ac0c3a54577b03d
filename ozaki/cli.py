"""The command line: ``ozaki demo``, ``ozaki train``, ``ozaki denoise`` (floor 9).

A command is a function here with ``@app.command()``; what it says goes through `typer.echo`.
"""

import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ozaki import denoise_files
from ozaki.datasets import OLD_FAITHFUL_COLUMNS, old_faithful, table
from ozaki.diagnostics import sampler_test, save, summary
from ozaki.images import read_folder
from ozaki.kernels.pyro_kernel import ScoreOzakiKernel
from ozaki.mcmc import MCMC
from ozaki.report import write_report
from ozaki.scores.training import DSMTrainer

SOME_FAILED, USAGE_ERROR = 1, 2
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


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(help="A .csv, .npy or .npz, a row an observation; or a folder of .png."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the estimator in.")],
    sigma: Annotated[
        str, typer.Option(help="Noise in units of the data's spread: a number, LOW:HIGH, or auto.")
    ] = "auto",
    objective: Annotated[
        str,
        typer.Option(help="auto, residual, ocm, residual+ocm, d2sm, likelihood, margins or dsm."),
    ] = "auto",
    curvature: Annotated[
        str, typer.Option(help="diagonal, low_rank, or none for s1 alone.")
    ] = "diagonal",
    rank: Annotated[int | None, typer.Option(help="Of curvature low_rank.")] = None,
    unsigned: Annotated[
        bool,
        typer.Option(
            "--unsigned", help="Keep a low rank's posterior covariance positive, for denoising."
        ),
    ] = False,
    network: Annotated[str, typer.Option(help="mlp, or for images unet or unet_large.")] = "mlp",
    max_steps: Annotated[int, typer.Option(help="Optimiser steps, at most.")] = 3000,
    batch_size: Annotated[int, typer.Option(help="Noisy pairs a step.")] = 256,
    width: Annotated[
        int | None, typer.Option(help="Hidden units, or a U-Net's channels at its first level.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam, at its peak; 0.006, or 0.002 for a U-Net.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="32-true, 64-true, 16-mixed or bf16-mixed.")
    ] = "32-true",
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "cpu",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to keep the state of the run in.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    logger: Annotated[str | None, typer.Option(help="csv or tensorboard.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Makes the run reproducible.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the estimator there.")] = False,
) -> None:
    """Learn the score of a table of numbers, or of images, and save the estimator.

    For example: ozaki train survey.csv --out estimator --sigma 0.2

    ozaki train photographs/ --out estimator --network unet --sigma 0.1:1

    Intensities of .png files are divided by the largest possible one. Images that cannot be read
    are named and left out, and the exit status is then 1.

    On N processes, each with its share of every batch:

    torchrun --nproc-per-node N -m ozaki train survey.csv --out estimator
    """
    chief = os.environ.get("RANK", "0") == "0"
    if chief and out.exists() and not (out.is_dir() and (force or not any(out.iterdir()))):
        _refuse(
            f"{out} exists, and nothing in it was changed; add --force, or choose another --out"
        )
    try:
        trainer = DSMTrainer(
            _sigma(sigma),
            objective=objective,
            curvature=None if curvature == "none" else curvature,
            rank=rank,
            signed=not unsigned,
            network=None if network == "mlp" else network,
            max_steps=max_steps,
            batch_size=batch_size,
            width=width,
            learning_rate=learning_rate,
            precision=precision,
            accelerator=accelerator,
            checkpoint=checkpoint,
            logger=logger,
            seed=seed,
        )
        failed: dict[str, str] = {}
        rows = read_folder(data, failed) if data.is_dir() else table(data)
        estimator = trainer.fit(rows, resume=resume)
        if chief:
            estimator.save(out, overwrite=force)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        _refuse(str(error))
    if not chief:
        return
    for name, value in estimator.metrics.items():
        typer.echo(f"{name}: {value}")
    typer.echo(f"\n{estimator}\nsaved in {out}")
    for problem in failed.values():
        typer.echo(f"ozaki: {problem}", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


@app.command("denoise")
def denoise_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A .csv, .npy or .npz of noisy points, a .png, or a folder of .png."
        ),
    ],
    estimator: Annotated[Path, typer.Option(help="Folder of the estimator, as train saved it.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Of an estimator of a range, the noise, in the units of training; else found."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Draws of each clean point.")] = 0,
    components: Annotated[
        int, typer.Option(min=0, help="Principal components of each; at most one a dimension.")
    ] = 3,
    clean: Annotated[
        Path | None,
        typer.Option(help="The true points, as IN: says whether the uncertainty is right."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Makes the draws reproducible.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was done as JSON.")] = False,
) -> None:
    """Clean points behind noisy ones: mean, standard deviation, principal components, draws.

    Writes denoised.npz into the folder, for images contact-sheet.png, and with --clean
    calibration.png. Intensities of .png files are divided by the largest possible one; arrays are
    taken as they are. Images that cannot be read are named and left out, and the exit status is
    then 1; it is 2 where nothing was written.

    For example: ozaki denoise noisy/ --estimator digits --out clean --sigma 0.5
    """
    try:
        if out.exists() and not (force or (out.is_dir() and not any(out.iterdir()))):
            raise ValueError(
                f"{out} exists, and nothing in it was changed; add --force, or choose another --out"
            )
        done = denoise_files.run(
            source, estimator, out, sigma, samples, components, seed, clean, overwrite=force
        )
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        _refuse(str(error))
    for problem in (*done.failed.values(), *done.notes):
        typer.echo(f"ozaki: {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(done.summary(), allow_nan=False))
    else:
        at = "" if done.sigma is None else f" at sigma {done.sigma:.4g}"
        if done.calibration:
            typer.echo(f"{done.calibration}\n")
        typer.echo(f"{done.points} points denoised{at}\nsaved in {out}: {', '.join(done.written)}")
    if done.failed:
        raise typer.Exit(SOME_FAILED)


def _sigma(text: str) -> float | str | tuple[float, ...]:
    """A number, a range, or the word."""
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else parts


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
