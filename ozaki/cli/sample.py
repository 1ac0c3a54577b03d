"""``ozaki sample`` draws from an estimator or a Pyro model, and says whether to trust the draws."""

import inspect
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ozaki.cli.application import (
    Config,
    Header,
    Json,
    Seed,
    command,
    drawn,
    free,
    judged,
    place_of,
    runs,
)
from ozaki.diagnostics import save
from ozaki.diagnostics.judgement import Verdict
from ozaki.foundation.validation import choice, short
from ozaki.io.atomic import write_folder_atomically
from ozaki.io.tables import Table, headers, named_table
from ozaki.kernels.langevin_kernel import ScoreLangevinKernel
from ozaki.kernels.ozaki_kernel import ScoreOzakiKernel
from ozaki.sampling.mcmc import MCMC
from ozaki.scores.differentiation import first_line
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.standardisation import resolution

DRAWS, REPORT = "draws.nc", "report.html"
MODEL = ".py:"  # FILE.py:NAME
MODULE = "__ozaki_model__"  # the name of any model's module: a json.py must not replace json
REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # *args, **kwargs


def _steps(given: Any) -> Any:
    """Read a number of steps, or "auto"."""
    if given == "auto" or isinstance(given, int):
        return given
    try:
        return int(given)
    except ValueError:
        raise typer.BadParameter(f"{given!r} is neither a whole number nor 'auto'.") from None


@command("sample")
def sample(
    source: Annotated[
        str,
        typer.Argument(help="Folder of an estimator, as train saved it; or FILE.py:NAME, a model."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    data: Annotated[
        Path | None,
        typer.Option(help="What the model is called with: a .csv, .parquet, .npy or .npz."),
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Of an estimator of a range, the noise of the law.")
    ] = None,
    kernel: Annotated[str, typer.Option(help="ozaki or langevin.")] = "ozaki",
    num_samples: Annotated[int, typer.Option(help="Draws kept a chain.")] = 1000,
    warmup_steps: Annotated[
        Any,
        typer.Option(
            parser=_steps,
            metavar="N|auto",
            help="Steps before them, which adapt; auto ends once chains agree.",
        ),
    ] = 1000,
    num_chains: Annotated[int, typer.Option(help="Chains, walked at once.")] = 4,
    thinning: Annotated[int, typer.Option(help="Keep one draw in so many.")] = 1,
    step_size: Annotated[
        float | None, typer.Option(help="Diffusion time of a step; else found in warm-up.")
    ] = None,
    metropolis: Annotated[str, typer.Option(help="auto, exact, line_integral or none.")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Walk as machine code: for long runs.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to keep the run in, which goes on from there.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the report.")] = "Markov chain report",
    header: Header = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier draws there.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Draw from a learned law or a model's posterior, and say whether to trust the draws.

    Writes draws.nc, for ArviZ, and report.html into the folder. The exit status is 1 where the
    draws are written but not to be trusted, and 2 where nothing was written.

    A model with one argument is called with the whole of --data: (n,) of one column, else (n, D).
    One with several is called with the columns of their names, and nothing for *args and **kwargs.

    For example: ozaki sample estimator --out draws --num-samples 2000

    ozaki sample coins.py:model --data tosses.csv --out draws
    """
    is_model = MODEL in source.lower()
    file = Path(source.rpartition(":")[0] if is_model else source)
    free(out, force, _is_ours, read=(file, data))
    choice("--kernel", kernel, ("ozaki", "langevin"))
    walker = ScoreOzakiKernel if kernel == "ozaki" else ScoreLangevinKernel
    read = headers(header, [] if data is None else [data])
    if is_model:
        if sigma is not None:
            raise ValueError("--sigma is of an estimator, but SOURCE was a model; leave it out")
        target: Any = _function(source)
        if data is None:
            _check_needs_nothing(target, source)
            arguments = {}
        else:
            arguments = _arguments(target, source, named_table(data, read[data]))
    else:
        _check_names_a_folder(source)
        if data is not None:
            raise ValueError(
                "--data is what a model is called with, but SOURCE was an estimator; leave it out"
            )
        target, arguments = _estimator(Path(source), sigma), {}
    mcmc = MCMC(
        walker(target, step_size=step_size, metropolis=metropolis, compile=compiled),
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        num_chains=num_chains,
        thinning=thinning,
        checkpoint=checkpoint,
        seed=seed,
    )
    idata = drawn(mcmc, **arguments)
    verdicts: list[Verdict] = []

    def write(folder: Path) -> None:
        save(idata, folder / DRAWS)
        verdicts.append(mcmc.report(folder / REPORT, title=title))

    write_folder_atomically(out, write, ours=_is_ours, overwrite=force)
    judged(idata, verdicts[0], as_json, [str(out / DRAWS), str(out / REPORT)])


def _is_ours(folder: Path) -> bool:
    return {p.name for p in folder.iterdir()} <= {DRAWS, REPORT}


def _check_names_a_folder(source: str) -> None:
    """Refuse a model that is given without its file's suffix, or a file without its model."""
    file, _, name = source.rpartition(":")
    script = Path(source if not file else f"{file}.py")
    if script.suffix.lower() == ".py" and script.is_file():
        raise ValueError(
            f"SOURCE must be the folder of an estimator or FILE.py:NAME, but was {source}; "
            f"give {script}:{name if file else 'NAME, the function that is the model'}"
        )


def _estimator(folder: Path, sigma: float | None) -> ScoreEstimator:
    """Load an estimator, at the given σ if it has a range."""
    estimator = ScoreEstimator.load(folder)
    if sigma is not None:
        return estimator.at(sigma)
    if isinstance(estimator.sigma, tuple):
        low, high = estimator.sigma
        raise ValueError(
            f"--sigma must be given for an estimator of a range, {low:g} to {high:g}: the noise of "
            "the law to draw from"
        )
    return estimator


def _function(source: str) -> Callable[..., Any]:
    """Load the model of that name from its file, run as ``python FILE.py`` would run it.

    Its folder stays the first of `sys.path`: a model may import only when it is called.
    """
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give FILE.py:NAME, a file and a function")
    module_name = MODULE
    while module_name in sys.modules:
        module_name += "_"
    loader = SourceFileLoader(module_name, str(path.resolve()))
    spec = spec_from_loader(module_name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[module_name] = module  # dataclasses look their annotations up there
    runs(path)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        what = f"SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else first_line(error)
        place = place_of(error)
        raise ValueError(
            f"{path} could not be run: {what}{place and f' ({place})'}; mend it, and try python "
            f"{path}"
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        offered = [k for k, v in vars(module).items() if inspect.isfunction(v)]
        raise ValueError(f"{path} must define the function {name!r}, but defined {offered}")
    return found


def _needed(model: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the arguments of a model, without *args and **kwargs."""
    return [p for p in inspect.signature(model).parameters.values() if p.kind not in REST]


def _check_needs_nothing(model: Callable[..., Any], source: str) -> None:
    """Raise ValueError for a model that needs data where none are given."""
    if names := [p.name for p in _needed(model) if p.default is p.empty]:
        raise ValueError(
            f"--data must be given, since {source} is a model with the argument(s) "
            f"{', '.join(names)}: give --data FILE, a table "
            + ("that it is called with" if len(names) == 1 else "with columns of these names")
        )


def _arguments(model: Callable[..., Any], source: str, found: Table) -> dict[str, Any]:
    """Return the model's arguments, in torch's default dtype."""
    values = found.values
    needed = _needed(model)
    if not needed:
        raise ValueError(
            f"--data is what a model is called with, but {source} has no arguments; leave it out"
        )
    names = [p.name for p in needed if p.default is p.empty or p.name in found.columns]
    if len(needed) == 1:  # whatever its default is
        names = [needed[0].name]
    if len(names) == 1:
        alone = values.ndim == 2 and values.shape[1] == 1
        cast = _cast(values, found.columns)
        return {names[0]: cast[:, 0] if alone else cast}
    missing = [name for name in names if name not in found.columns]
    if missing or not names:
        raise ValueError(
            f"--data must have columns of the names of the arguments of {source}, "
            f"{names or [p.name for p in needed]}, but had {found.columns or 'none with names'}; "
            "name them in the first line of a .csv"
        )
    places = {name: found.columns.index(name) for name in names}
    cast = _cast(values, found.columns, places.values())
    return {name: cast[:, i] for name, i in places.items()}


def _cast(values: Tensor, columns: list[str], used: Iterable[int] | None = None) -> Tensor:
    """`values` in torch's default dtype, which must tell apart what a column used, or any, holds.

    The rule is that of training, but that a constant column, an intercept say, loses nothing.
    """
    cast = values.to(torch.get_default_dtype())
    rows = torch.atleast_1d(values)[..., None].flatten(1).double()
    if cast.dtype == values.dtype or len(rows) < 2:
        return cast
    read = range(rows.shape[1]) if used is None else list(used)
    for i in read:
        if not bool(rows[:, i].to(cast.dtype).isfinite().all()):
            raise ValueError(
                f"column {_column(i, columns)} of --data must fit {cast.dtype}, but its largest "
                f"entry was {float(rows[:, i].abs().max()):.4g}; change the units, or, if it "
                "stands for a missing value, remove or impute it"
            )
    mean, scale = rows.mean(0), rows.std(0)
    step, blurred = resolution(cast.dtype, mean, scale)
    blurred &= (rows != rows[0]).any(0)
    for i in read:
        if blurred[i]:
            raise ValueError(
                f"column {_column(i, columns)} of --data must be resolved by {cast.dtype}, but "
                f"near {float(mean[i]):.4g} it holds only every {float(step[i]):.2g}, where the "
                f"standard deviation was {float(scale[i]):.2g}; subtract an offset, such as the "
                "mean, from the column"
            )
    return cast


def _column(i: int, columns: list[str]) -> str:
    return f"{i + 1} ({short(columns[i])})" if columns else f"{i + 1}"
