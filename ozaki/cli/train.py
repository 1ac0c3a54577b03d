"""``ozaki train`` trains an estimator on a table or on images."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ozaki.cli.application import SOME_FAILED, Config, Header, Json, Seed, command, free, tell
from ozaki.io.png import read_folder
from ozaki.io.tables import headers, named_table
from ozaki.scores.learned import estimator_folder
from ozaki.scores.learned.trainer import DSMTrainer


@command("train")
def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="A .csv, .parquet, .npy, .npz or IDX file, a row an observation; or a folder of "
            ".png."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the estimator in.")],
    sigma: Annotated[
        str,
        typer.Option(help="Noise: a number, LOW:HIGH, or auto; for tables in units of the spread."),
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
    header: Header = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the estimator there.")] = False,
    as_json: Json = False,
    config: Config = None,
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
    if chief:
        free(out, force, estimator_folder.is_ours, read=(data,))
    read = headers(header, [data])
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
    rows = read_folder(data, failed) if data.is_dir() else named_table(data, read[data]).values
    estimator = trainer.fit(rows, resume=resume)
    if not chief:
        return
    estimator.save(out, overwrite=force)
    if as_json:
        tell({"saved": str(out), "metrics": estimator.metrics, "failed": failed})
    else:
        for name, value in estimator.metrics.items():
            typer.echo(f"{name}: {value}")
        typer.echo(f"\n{estimator}\nsaved in {out}")
    for problem in failed.values():
        typer.echo(f"ozaki: {problem}", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _sigma(text: str) -> float | str | tuple[float, ...]:
    """Parse --sigma: a number, a range, or the word "auto"."""
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else parts
