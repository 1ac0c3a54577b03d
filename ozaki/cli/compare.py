"""``ozaki compare`` compares sets of draws with one another, or estimators by their s2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from ozaki import laws
from ozaki.cli.application import Config, Header, Json, Seed, command, tell
from ozaki.diagnostics import components, load
from ozaki.diagnostics.chain_files import format_of, notes
from ozaki.io.tables import headers, named_table
from ozaki.scores.comparison import compare as compare_curvature
from ozaki.scores.learned.estimator import ScoreEstimator

SHOWN = 20  # most columns shown, the furthest apart first


@command("compare")
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B...",
            help="Draws as of `ozaki report`, of Stan's chains a folder, or tables of numbers; or "
            "with --data folders of estimators.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Held-out points, on which estimators are ranked.")
    ] = None,
    header: Header = None,
    seed: Seed = 0,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Say whether draws are of one law, or which estimator's s2 is best on held-out data.

    Of draws: mean and standard deviation of each column with their Monte Carlo errors, how many
    standard errors the means lie from those of the first, ESS, R-hat, and the energy distance from
    the first with the p-value of a permutation test. Rows of a table are taken to be independent;
    columns are matched by name, or where names differ by order.

    Of estimators: the held-out loss of s2, of each one's head, of the Jacobian of the first one's
    s1 and of a constant. They must have been trained at one sigma.

    For example: ozaki compare draws/draws.nc survey.csv

    ozaki compare small large --data held-out.csv
    """
    if len(sources) < 2 and data is None:
        raise ValueError(f"at least two sets of draws are needed, but {sources} was all; add one")
    read = headers(header, sources if data is None else [data])
    if data is not None:
        _estimators(sources, named_table(data, read[data]).values, seed, as_json)
    else:
        _draws(sources, read, seed, as_json)


def _estimators(folders: list[Path], data: Tensor, seed: int, as_json: bool) -> None:
    """Rank the s2 of estimators on held-out data, and print the table."""
    first, *rest = (ScoreEstimator.load(folder) for folder in folders)
    others = {str(f): e for f, e in zip(folders[1:], rest, strict=True)}
    found = compare_curvature(
        first,
        data.to(first.dtype),
        others,
        generator=torch.Generator().manual_seed(seed),
    )
    if as_json:
        tell({"first": str(folders[0]), "candidates": [c._asdict() for c in found]})
    else:
        typer.echo(f"head, autodiff and constant are those of {folders[0]}\n\n{found}")


def _read(path: Path, header: bool | None) -> dict[str, np.ndarray]:
    """Read columns (chains, draws) by name; the rows of a table are one chain."""
    if format_of(path):
        idata = load(path)
        for note in notes(idata):
            typer.echo(f"ozaki: {path}: {note}", err=True)
        return components(idata)
    found = named_table(path, header)
    values = found.values.flatten(1) if found.values.ndim > 1 else found.values.unsqueeze(1)
    names = found.columns or [f"x[{i}]" for i in range(values.shape[1])]
    return {name: values[None, :, i].numpy() for i, name in enumerate(names)}


def _draws(paths: list[Path], header: Mapping[Path, bool | None], seed: int, as_json: bool) -> None:
    """Compare sets of draws with the first, and print the table."""
    first = _read(paths[0], header[paths[0]])
    all_draws = [first]
    notes = []
    for path in paths[1:]:
        draws = _read(path, header[path])
        if len(draws) != len(first):
            raise ValueError(
                f"{path} must have the {len(first)} columns of {paths[0]}, {list(first)[:8]}, but "
                f"had {len(draws)}, {list(draws)[:8]}"
            )
        if set(draws) == set(first):
            draws = {name: draws[name] for name in first}
        else:
            notes.append(f"the columns of {path} are matched by order: {list(draws)[:8]}")
            draws = dict(zip(first, draws.values(), strict=True))
        all_draws.append(draws)
    tables = [format_of(path) is None for path in paths]
    figures = [laws.columns(d, table) for d, table in zip(all_draws, tables, strict=True)]
    apart = [
        {name: laws.in_errors(figures[0][name], each[name]) for name in first}
        for each in figures[1:]
    ]
    distances = [
        laws.two_sample_test(first, draws, seed, independent=(tables[0], table))
        for draws, table in zip(all_draws[1:], tables[1:], strict=True)
    ]
    for note in notes:
        typer.echo(f"ozaki: {note}", err=True)
    if as_json:
        tell(_as_json(paths, figures, apart, distances))
        return
    far = {n: max((abs(a[n]) for a in apart if a[n] == a[n]), default=0.0) for n in first}
    shown = sorted(first, key=lambda n: -far[n])[:SHOWN]
    width = max(len(str(p)) for p in paths)
    for name in sorted(shown, key=list(first).index):
        typer.echo(f"{name}\n  {'':<{width}}  {_HEADS}")
        for i, (path, each) in enumerate(zip(paths, figures, strict=True)):
            f = each[name]
            distance = "" if i == 0 else f"{apart[i - 1][name]:+.1f}"
            typer.echo(
                f"  {path!s:<{width}}  {f['mean']:>10.4g} {f['mcse_mean']:>9.2g} "
                f"{f['sd']:>10.4g} {f['mcse_sd']:>9.2g} {distance:>9} {f['ess_bulk']:>7.0f} "
                f"{f['r_hat']:>6.3f}"
            )
    if len(first) > SHOWN:
        typer.echo(f"and {len(first) - SHOWN} columns that are nearer to one another")
    typer.echo("")
    for path, d in zip(paths[1:], distances, strict=True):
        said = "draws of one law would seldom differ so" if d.p_value < 0.01 else "as of one law"
        typer.echo(
            f"{paths[0]} and {path}: energy distance {d.energy_distance:.4f}, p = {d.p_value:.3f} "
            f"on {d.points[0]} and {d.points[1]} nearly independent draws: {said}"
        )


_HEADS = (
    f"{'mean':>10} {'error':>9} {'sd':>10} {'error':>9} {'in errors':>9} {'ESS':>7} {'R-hat':>6}"
)


def _as_json(
    paths: list[Path], figures: list[Any], apart: list[Any], distances: list[laws.Difference]
) -> dict[str, Any]:
    """Put the figures of all sets into the types of JSON."""
    sets = []
    for i, (path, columns) in enumerate(zip(paths, figures, strict=True)):
        told = {"source": str(path), "columns": columns}
        if i:
            told |= {"in_errors": apart[i - 1], **distances[i - 1]._asdict()}
        sets.append(told)
    return {"sets": sets}
