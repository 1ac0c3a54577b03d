"""This module has what the commands share: the application, configuration files, and errors.

A command is a function with ``@command("name")``. Text for people goes through `typer.echo`, and
text for programs through `tell`. Every error ends in one sentence, since few users of a command
line need a traceback; ``OZAKI_DEBUG=1`` shows it.
"""

import difflib
import json
import os
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from traceback import extract_tb
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from ozaki.diagnostics import summary
from ozaki.diagnostics.judgement import Verdict
from ozaki.foundation import validation
from ozaki.foundation.interruption import STOPPED
from ozaki.io.atomic import check_folder, reserve
from ozaki.sampling.mcmc import MCMC
from ozaki.scores.differentiation import first_line

DOUBTED, USAGE_ERROR = 1, 2  # exit statuses besides 0 and STOPPED
SOME_FAILED = DOUBTED
DEBUG = "OZAKI_DEBUG"
UNHEARD = "standard output could not be written ({}); whatever was written to files is whole"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Second-order scores of data, models and formulas, and the chains that walk on them.",
)


INTERRUPTED = "interrupted: "  # the beginning of the warning of MCMC
_DIGITS = {"mean": ".6g", "sd": ".4g", "mcse_mean": ".4g", "r_hat": ".3f"}  # others: no digits
_held = ExitStack()  # contexts that a command keeps open to its end
_own: list[Path] = []  # files of the user's own code that the command runs
_told: set[str] = set()  # warnings that were shown already


class Command(typer.core.TyperCommand):
    """A command of Typer whose errors become sentences."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error becomes a sentence on standard error and an exit status."""
        _own.clear()
        _told.clear()
        try:
            with _held, warnings.catch_warnings():
                warnings.showwarning = _warned
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            kept = _kept(ctx.params)
            typer.echo(f"ozaki: stopped; nothing more was written{kept}", err=True)
            raise typer.Exit(STOPPED) from None
        except SystemExit as error:
            if not place_of(error):
                raise
            refuse(_sentence(error))
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            unheard = extract_tb(error.__traceback__)[-1].name == typer.echo.__name__
            refuse(UNHEARD.format(_sentence(error)) if unheard else _sentence(error))


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command of that name."""
    return app.command(name, cls=Command)


def _kept(given: Mapping[str, Any]) -> str:
    """Say how to resume a run that was stopped, if it is kept."""
    folder = given.get("checkpoint")
    if folder is None or not any(folder.glob("*.safetensors")):
        return ""
    how = " and --resume" if "resume" in given else ""
    return f", and {folder} holds the run: give the same command{how} to go on with it"


def runs(path: Path) -> None:
    """Note that the command runs the user's own code, so that errors say where in it."""
    _own.append(path.resolve())


def place_of(error: BaseException) -> str:
    """Return the deepest line of the user's own code where an error was raised; or nothing.

    For a line in a file beside the given one, also name where the given file called it.
    """
    places = [(f.filename, f.lineno) for f in extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    places = [(Path(name).resolve(), line) for name, line in places if _is_own(name)]
    given = [place for place in places if place[0] in _own]
    last = list(dict.fromkeys(places[-1:] + given[-1:]))
    return ", called from ".join(f"{_shown(path)}, line {line}" for path, line in last)


def _sentence(error: BaseException) -> str:
    """Write an error as one sentence, with its place in the user's own code."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        text = error.strerror  # ozaki's sentence, without the error number
    ours = isinstance(error, ValueError) and _is_raised_by_ozaki(error)
    if place := place_of(error):
        return f"{place}: {text if ours else first_line(error)}"  # Pyro adds lines of shapes
    if (cause := error.__cause__) is not None and (place := place_of(cause)):
        text += f" ({place})"
    elif (first := error.__context__) is not None and (place := place_of(first)) and not ours:
        return f"{place}: {first_line(first)}"  # a library replaced the user's error
    if text and isinstance(error, (ValueError, OSError, ImportError, ArithmeticError)):
        return text
    return f"{first_line(error)} (set {DEBUG}=1 to see where)"


def _is_raised_by_ozaki(error: BaseException) -> bool:
    frames = extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def _is_own(filename: str) -> bool:
    """Say whether a file is the user's own, or lies beside one."""
    folder = Path(filename).resolve().parent
    return not filename.startswith("<") and any(folder == own.parent for own in _own)


def _shown(path: Path) -> str:
    """Write a path relative to the current folder, if it lies inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show a warning as a sentence, with its place where that is in the user's own code."""
    text = " ".join(str(message).split())
    if _is_own(filename):
        place = f"{_shown(Path(filename).resolve())}, line {lineno}"
        text = f"{place}: {category.__name__}: {text}"
    if text not in _told:
        _told.add(text)
        typer.echo(f"ozaki: {text}", err=True)


def refuse(message: str) -> NoReturn:
    """Say why nothing was done, and end."""
    typer.echo(f"ozaki: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)


def free(
    out: Path,
    force: bool,
    ours: Callable[[Path], bool] | None = None,
    *,
    read: Iterable[Path | None] = (),
) -> None:
    """Refuse, before any work is done, a path that is taken or cannot be written.

    Until the command ends, no other can write there.

    Args:
        out: of a file, or of a folder.
        force: replace what is there.
        ours: of a folder, whether what is there may be replaced.
        read: what the command reads, which is not replaced even so.
    """
    target = out.resolve()
    for path in read:
        if path is not None and target in (path.resolve(), *path.resolve().parents):
            raise ValueError(
                f"{path} is read by this command, and --out {out} would replace it; choose another "
                "--out"
            )
    if out.exists() and not (force or (out.is_dir() and not any(out.iterdir()))):
        raise ValueError(
            f"{out} exists, and nothing in it was changed; add --force, or choose another --out"
        )
    if ours is not None:
        check_folder(out, ours=ours, overwrite=force)
    _held.enter_context(reserve(out))


def drawn(mcmc: MCMC, **arguments: Any) -> Any:
    """Run the chains to the end, and return the draws for ArviZ.

    Ctrl-C ends the command, as anywhere else: a part of the draws could pass for all of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", INTERRUPTED)
        try:
            mcmc.run(**arguments)
        except UserWarning as warning:
            if not str(warning).startswith(INTERRUPTED):  # under python -W error
                raise
            raise KeyboardInterrupt from None
    return mcmc.to_inference_data()


def tell(found: Mapping[str, Any]) -> None:
    """Write one line of JSON to standard output, with null for numbers that are not finite."""
    typer.echo(json.dumps(_plain(found), allow_nan=False))


def _plain(value: Any) -> Any:
    """Write a value in the types of JSON."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def judged(
    idata: Any, verdict: Verdict, as_json: bool, written: list[str], *, fails: bool = True
) -> None:
    """Print the verdict on draws; with `fails`, exit with 1 where they are not to be trusted."""
    table = summary(idata)
    if as_json:
        tell(
            {
                "trusted": verdict.trusted,
                "headline": verdict.headline,
                "problems": [{"what": p.what, "remedy": p.remedy} for p in verdict.problems],
                "summary": table.to_dict("index"),
                "written": written,
            }
        )
    else:
        formatters = {name: ("{:" + _DIGITS.get(name, ".0f") + "}").format for name in table}
        typer.echo(f"\n{table.to_string(formatters=formatters)}\n\n{verdict.headline}")
        for problem in verdict.problems:
            typer.echo(f"- {problem.what}. {problem.remedy}")
        typer.echo(f"\nwritten: {', '.join(written)}")
    if fails and not verdict.trusted:
        raise typer.Exit(DOUBTED)


def _configured(ctx: Any, path: Path | None) -> Path | None:
    """Make the configuration file's table of this command its defaults."""
    if path is None:
        return None
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"{path} is not a TOML file that can be read ({validation.said(error)})"
        ) from None
    table = found.get(ctx.command.name or "")
    if not isinstance(table, dict):
        raise typer.BadParameter(
            f"{path} must hold a table [{ctx.command.name}], but held "
            f"{validation.short(str(sorted(found)))}"
        )
    names = {p.name: p for p in ctx.command.params if p.name not in ("config", "help")}
    for p in ctx.command.params:
        names |= {o[2:]: p for o in p.opts if o.startswith("--") and p.name in names}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise typer.BadParameter(
                f"{path}, [{ctx.command.name}]: there is no option {validation.short(key)!r}{hint}"
            )
        if isinstance(value, dict):
            raise typer.BadParameter(
                f"{path}, [{ctx.command.name}]: {key} must be a value, but was a table"
            )
        try:
            defaults[str(names[key].name)] = _as_typed(names[key], value)
        except ValueError as error:
            raise typer.BadParameter(
                f"{path}, [{ctx.command.name}]: {key} must be {error}"
            ) from None
    ctx.default_map = defaults
    return path


def _as_typed(parameter: Any, value: Any) -> Any:
    """Turn a value of a configuration file into the one that the command line would give.

    Raises:
        ValueError: what it must be, and what it was.
    """
    if parameter.nargs == -1:
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, (bool, list, dict)) for v in values):
            raise ValueError(f"words or a list of them, but was {validation.short(str(value))}")
        return [str(v) for v in values]
    if isinstance(value, list):
        if parameter.name != "sigma":
            raise ValueError(f"one value, but was a list, {validation.short(str(value))}")
        if any(isinstance(v, (bool, list, dict)) for v in value):
            raise ValueError(f"a number, or [low, high], but was {validation.short(str(value))}")
        return ":".join(map(str, value))  # a pair is LOW:HIGH on the command line
    if getattr(parameter, "is_flag", False):
        return value
    if isinstance(value, bool):
        raise ValueError(f"a value other than true or false, but was {str(value).lower()}")
    return str(value)  # so that a fraction given for a whole number is refused and not truncated


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_configured,
        help="A TOML file; its table of this command's name gives options by their long names. "
        "What stands on the command line wins.",
    ),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether the first line of a .csv names its columns; else where no entry is a number.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Makes the run reproducible.")]
Json = Annotated[bool, typer.Option("--json", help="Say what was done as one line of JSON.")]


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
    """Handle the options that stand before a command."""
