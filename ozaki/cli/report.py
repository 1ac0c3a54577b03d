"""``ozaki report`` writes the page about draws that were made before."""

from pathlib import Path
from typing import Annotated

import typer

from ozaki.cli.application import Config, Header, Json, command, free, judged
from ozaki.diagnostics import components, load
from ozaki.diagnostics.chain_files import notes
from ozaki.io.tables import headers, named_table
from ozaki.report import write_report


@command("report")
def report(
    draws: Annotated[
        list[Path],
        typer.Argument(
            metavar="DRAWS...",
            help="Draws as .nc, Zarr, JSON of chains or Stan's CSV, of which each file is a chain.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .html to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Markov chain report",
    data: Annotated[
        Path | None,
        typer.Option(help="Points to draw under the samples, a column a component, in order."),
    ] = None,
    header: Header = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file there.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Say whether to trust draws, on one page that needs no network.

    The exit status is 1 where the page is written and the draws are not to be trusted, and 2 where
    nothing was written. Draws without statistics of their sampler are not trusted: chains that
    diverged may agree.

    For example: ozaki report draws/draws.nc --out report.html

    ozaki report chain_1.csv chain_2.csv chain_3.csv chain_4.csv
    """
    free(out, force, read=(*draws, data))
    read = headers(header, [] if data is None else [data])
    idata = load(*draws)
    for note in notes(idata):
        typer.echo(f"ozaki: {draws[0]}: {note}", err=True)
    points, columns = None, None
    if data is not None:
        found = named_table(data, read[data])
        points, columns = found.values, found.columns or None
        size = len(components(idata))
        if points.ndim != 2 or points.shape[1] != size:
            raise ValueError(
                f"--data must have {size} columns, one for each component of the draws, but its "
                f"shape was {tuple(points.shape)}"
            )
    verdict = write_report(
        out, idata, title=title, data=points, data_columns=columns, need_stats=True
    )
    judged(idata, verdict, as_json, [str(out)])
