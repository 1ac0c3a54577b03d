"""``ozaki denoise`` estimates the clean points behind noisy ones."""

from pathlib import Path
from typing import Annotated

import typer

from ozaki.cli.application import SOME_FAILED, Config, Header, Json, Seed, command, free, tell
from ozaki.denoising import files


@command("denoise")
def denoise(
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
    header: Header = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Clean points behind noisy ones: mean, standard deviation, principal components, draws.

    Writes denoised.npz into the folder, for images contact-sheet.png, and with --clean
    calibration.png. Intensities of .png files are divided by the largest possible one; arrays are
    taken as they are. Images that cannot be read are named and left out, and the exit status is
    then 1; it is 2 where nothing was written.

    For example: ozaki denoise noisy/ --estimator digits --out clean --sigma 0.5
    """
    free(out, force, files.is_ours, read=(source, estimator, clean))
    done = files.run(
        source,
        estimator,
        out,
        sigma,
        samples,
        components,
        seed,
        clean,
        header=header,
        overwrite=force,
    )
    for problem in (*done.failed.values(), *done.notes):
        typer.echo(f"ozaki: {problem}", err=True)
    if as_json:
        tell(done.summary())
    else:
        at = "" if done.sigma is None else f" at sigma {done.sigma:.4g}"
        if done.calibration:
            typer.echo(f"{done.calibration}\n")
        typer.echo(f"{done.points} points denoised{at}\nsaved in {out}: {', '.join(done.written)}")
    if done.failed:
        raise typer.Exit(SOME_FAILED)
