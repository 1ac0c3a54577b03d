"""Draws to InferenceData, and the figures that say whether to trust them (floor 4).

The only file that imports ArviZ. Works with ArviZ before 1.0, whose container is `InferenceData`,
and after, where it is xarray's `DataTree`. R-hat, ESS and MCSE are ArviZ's, rank-normalised as in
Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021).
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ozaki import storage, validation
from ozaki.checks import Evidence, Problem, is_constant
from ozaki.lazy import lazy
from ozaki.scores.base import Score
from ozaki.shapes import Float
from ozaki.stein import SteinTest, kernel_stein_discrepancy, stein_test
from ozaki.verdict import Verdict, judge

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any

az = lazy("arviz")
h5py = lazy("h5py")
pd = lazy("pandas")
xr = lazy("xarray")

GROUPS = ("log_likelihood", "posterior_predictive", "prior", "prior_predictive")
LAYOUT = 2**13  # bytes a variable in a file of draws, beside its values
COPY = "restore it from a copy, or draw again"
DEEPEST = 4  # groups within groups, where ArviZ has one
TEXT = 64  # bytes of a short text in memory
LEAST_POINTS = 50  # for a test that could fail
TAILS = (0.05, 0.95)  # the quantiles of the tail ESS

__all__ = [
    "Problem",
    "SteinTest",
    "Verdict",
    "components",
    "dataset",
    "effective_sample_size",
    "groups",
    "inference_data",
    "kernel_stein_discrepancy",
    "label",
    "load",
    "sampler_test",
    "save",
    "stein_test",
    "step_bias",
    "summary",
    "thinning",
    "verdict",
]


def inference_data(
    posterior: Mapping[str, Any],
    sample_stats: Mapping[str, Any] | None = None,
    observed_data: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **others: Mapping[str, Any],
) -> Any:
    """Draws as ArviZ keeps them: one labelled data set a group.

    Args:
        posterior: draws by site, each a tensor or array (chains, draws, *shape); or an
            `xarray.Dataset` of them, which is not read. A '/' in a name becomes '.' (`label`).
        sample_stats: of the same kind, per-step figures by name, each (chains, draws):
            ``diverging`` (bool), ``acceptance_rate``, ``step_size`` (diffusion time), ``lp`` (log
            density), ``modified_curvature`` (directions flattened at that step).
        observed_data: data by site, of any shape.
        attrs: what else to keep; what NetCDF cannot hold is written as JSON.
        others: further groups by ArviZ's name, each (chains, draws, *shape) by site:
            ``log_likelihood``, ``posterior_predictive``, ``prior``, ``prior_predictive``. The last
            two may have chains and draws of their own.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on. Draws that are not finite
        are kept: `verdict` says so.

    Raises:
        ValueError: no draws, entries that are no numbers, arrays that disagree in chains and
            draws, another group, or a name that is one of the dimensions'.

    Example:
        >>> idata = inference_data({"x": torch.zeros(4, 100, 2)}, attrs={"seed": 0})
        >>> dict(idata["posterior"].sizes)
        {'chain': 4, 'draw': 100, 'x_dim_0': 2}
    """
    if not posterior:
        raise ValueError("posterior must hold the draws of at least one site, but was empty")
    found = {"posterior": dataset(posterior)}
    lead = found["posterior"].sizes["chain"], found["posterior"].sizes["draw"]
    if sample_stats:
        found["sample_stats"] = dataset(sample_stats, lead)
    if observed_data:
        observed = {name: _array(name, value) for name, value in observed_data.items()}
        found["observed_data"] = _dataset(observed, ())
    for group, contents in others.items():
        validation.choice("groups", group, GROUPS)
        if contents:
            found[group] = dataset(contents, None if group.startswith("prior") else lead)
    found["posterior"].attrs = {name: _attribute(v) for name, v in (attrs or {}).items()}
    # later ArviZ has an InferenceData too, which is a DataTree and takes no groups by name
    if int(version("arviz").split(".")[0]) < 1:
        return az.InferenceData(**found)
    return xr.DataTree.from_dict(found)


def dataset(draws: Any, lead: tuple[int, ...] | None = None) -> Any:
    """Draws by site, each (chains, draws, *shape), as an `xarray.Dataset`; one of those as it is.

    Args:
        draws: tensors or arrays by name.
        lead: what (chains, draws) must be; None for whatever all have.

    Returns:
        The data set, with dimensions ``chain``, ``draw`` and, of a site, ``name_dim_0``, …

    Raises:
        ValueError: entries that are no numbers, arrays that disagree in chains and draws, or a name
            that is a dimension's.

    Example:
        >>> dict(dataset({"x": torch.zeros(4, 100)}).sizes)
        {'chain': 4, 'draw': 100}
    """
    if isinstance(draws, xr.Dataset):
        return draws
    arrays = {name: _array(name, value) for name, value in draws.items()}
    _lead(arrays, lead)
    return _dataset(arrays, ("chain", "draw"))


def label(site: str) -> str:
    """A site's name where draws are kept for ArviZ: '.' in place of '/', which parts groups there.

    Args:
        site: as the model names it.

    Returns:
        The name of the variable.

    Example:
        >>> label("encoder/weight")
        'encoder.weight'
    """
    return site.replace("/", ".")


def save(idata: Any, path: str | os.PathLike[str]) -> Path:
    """Write draws to a NetCDF file, whole or not at all.

    Args:
        idata: what `inference_data` returned.
        path: the file; replaced if it is there.

    Returns:
        The path.

    Raises:
        ValueError: a `path` that is none.
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: the folder of `path` does not exist.
        OSError: it could not be written, for want of space for instance.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(inference_data({"x": torch.zeros(4, 100)}), f"{folder}/run.nc")
        ...     load(path)["posterior"]["x"].shape
        (4, 100)
    """
    path = existing_folder(path)
    sizes = [v.nbytes for group in groups(idata) for v in idata[group].variables.values()]

    def write(file: Path) -> None:
        # where the disk is full HDF5 takes the process down when it ends
        storage.claim(file, sum(sizes) + LAYOUT * (1 + len(sizes)))
        idata.to_netcdf(str(file), engine="h5netcdf")

    return storage.write_atomically(path, write, overwrite=True)


def groups(idata: Any) -> list[str]:
    """The names of the groups that draws are kept in, whichever ArviZ keeps them.

    Args:
        idata: what `inference_data` returned.

    Returns:
        Names, without that of the whole.

    Example:
        >>> import numpy as np
        >>> groups(inference_data({"x": np.zeros((4, 10))}))
        ['posterior']
    """
    # a method before ArviZ 1.0, paths after, that of the whole among them
    held: Any = idata.groups() if callable(idata.groups) else idata.groups
    return [name for name in (str(group).strip("/") for group in held) if name]


def load(path: str | os.PathLike[str]) -> Any:
    """Draws from a NetCDF file, as `save` or ArviZ wrote it, in memory.

    Args:
        path: the file.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or one without draws (chains, draws, ...).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(inference_data({"x": torch.ones(4, 100)}), f"{folder}/run.nc")
        ...     float(load(path)["posterior"]["x"].mean())
        1.0
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; give draws in a .nc")
    with validation.parsing(path, "is truncated, or not a NetCDF file of draws", COPY):
        _check_members(path)
        idata = az.from_netcdf(str(path), engine="h5netcdf")
        idata.load()
        held = groups(idata)
    if "posterior" not in held or not idata["posterior"].data_vars:
        raise ValueError(
            f"{path} must hold a group 'posterior' of draws, but held {validation.short(str(held))}"
        )
    for group in {"posterior", "sample_stats"} & set(held):
        for name, variable in idata[group].data_vars.items():
            _check_draws(path, validation.short(str(name)), variable)
    return idata


def _check_draws(path: Path, name: str, variable: Any) -> None:
    if not {"chain", "draw"} <= set(variable.dims) or not variable.size:
        raise ValueError(
            f"{path}: {name} must have dimensions chain and draw, none of them 0, but had "
            f"{validation.short(str(dict(variable.sizes)))}"
        )
    if variable.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: {name} must be numbers, but its dtype was {variable.dtype}; leave it out"
        )


def _check_members(path: Path) -> None:
    """Refuse a file of HDF5 that leads to other files, or would fill the memory."""
    size = 0
    with h5py.File(path, "r") as file:
        for member in _members(file):
            if isinstance(member, h5py.Dataset):
                if member.is_virtual or member.external:
                    raise ValueError("the values of one of its arrays lie in other files")
                entry = max(member.dtype.itemsize, TEXT if member.dtype.kind == "O" else 1)
                size += entry * max(math.prod(member.shape or ()), math.prod(member.chunks or ()))
    validation.unpacked(path, size)


def _members(group: Any, depth: int = 0) -> Iterator[Any]:
    """All that lies in a group of HDF5, by no other way than one that stays in the file."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{validation.short(name)!r} in it is a link")
        yield (member := group[name])
        if isinstance(member, h5py.Group):
            if depth == DEEPEST:
                raise ValueError(f"its groups lie more than {DEEPEST} deep")
            yield from _members(member, depth + 1)


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """`path`, if its folder exists and it is not itself one; nothing is made silently.

    Raises:
        ValueError: `path` is no path.
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: the folder of `path` does not exist.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must name a file, but was {path!r}")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path must name a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path must lie in a folder that exists, but {path.parent} is none; make it first"
        )
    return path


def components(idata: Any, group: str = "posterior") -> dict[str, np.ndarray]:
    """Every scalar of a group by name, "x" or "x[0]" or "x[0, 1]".

    Args:
        idata: what `inference_data` returned.
        group: whose variables, as ArviZ names it.

    Returns:
        Arrays by name, each (chains, draws).

    Example:
        >>> sorted(components(inference_data({"x": torch.zeros(4, 100, 2)})))
        ['x[0]', 'x[1]']
    """
    found = {}
    for name, variable in idata[group].data_vars.items():
        values = variable.transpose("chain", "draw", ...).values
        for index in itertools.product(*map(range, values.shape[2:])):
            label = f"{name}[{', '.join(map(str, index))}]" if index else str(name)
            found[label] = values[(..., *index)]
    return found


def summary(idata: Any) -> DataFrame:
    """Mean, sd, MCSE of the mean, bulk and tail ESS, and R-hat of every scalar component.

    R-hat and ESS are NaN for a component that is constant or not finite. For one chain, R-hat
    compares its halves.

    Args:
        idata: what `inference_data` returned.

    Returns:
        A pandas frame, a row for each component, with columns ``mean``, ``sd``, ``mcse_mean``,
        ``ess_bulk``, ``ess_tail`` and ``r_hat``.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
    localization.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> float(summary(inference_data({"x": x})).loc["x", "r_hat"].round(2))
        1.0
    """
    rows = {name: _figures(draws) for name, draws in components(idata).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def effective_sample_size(draws: np.ndarray, method: str = "bulk") -> float:
    """ArviZ's effective sample size of draws; NaN where it is not defined.

    Args:
        draws: (chains, draws).
        method: of ArviZ's, such as "bulk", of which the mean is known, or "tail", the quantiles.

    Returns:
        A number of independent draws.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
    localization.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> effective_sample_size(x) > 1500, effective_sample_size(0 * x)
        (True, nan)
    """
    options = {"prob": TAILS} if method == "tail" else {}
    return float(az.ess(draws, method=method, **options)) if _usable(draws) else math.nan


def thinning(draws: np.ndarray) -> int:
    """How far apart draws must be to be nearly independent (correlation at most 0.02).

    The correlation is taken to fall off as ρᵏ with ρ = (τ − 1)/(τ + 1), where τ is draws by ESS of
    the slowest coordinate.

    Args:
        draws: (chains, draws, D).

    Returns:
        k: every k-th draw is to be kept; 1 for independent draws.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 5000, 1))
        >>> for i in range(1, 5000):  # correlation ρᵏ, ρ = ½: log 0.02 / log ½ = 5.6
        ...     x[:, i] += 0.5 * x[:, i - 1]
        >>> thinning(x)
        6
    """
    count = draws.shape[0] * draws.shape[1]
    sizes = [effective_sample_size(draws[..., i]) for i in range(draws.shape[-1])]
    tau = count / min((size for size in sizes if size > 0), default=1.0)
    rho = (tau - 1) / (tau + 1)
    return max(1, math.ceil(math.log(0.02) / math.log(rho))) if rho > 0 else 1


def sampler_test(score: Score, draws: Float[Tensor, "chains draws dim"]) -> SteinTest | None:
    """Test chains against the score they were drawn with, thinned until nearly independent.

    Args:
        score: what gives ∇ log p.
        draws: in the score's own flat coordinates, (chains, draws, D).

    Returns:
        The test, or None where draws are not finite or too few are nearly independent (fewer
        than 50): it would pass anything.

    Source: Chwialkowski, Strathmann and Gretton (2016), A kernel test of goodness of fit.

    Example:
        >>> from ozaki.scores import GaussianScore
        >>> score = GaussianScore(torch.zeros(2), torch.eye(2))
        >>> draws = score.sample(400, torch.Generator().manual_seed(0)).reshape(4, 100, 2)
        >>> sampler_test(score, draws).p_value > 0.05, sampler_test(score, draws[:, :10])
        (True, None)
    """
    if not bool(torch.isfinite(draws).all()):
        return None
    apart = thinning(draws.double().cpu().numpy())
    x = draws[:, ::apart].reshape(-1, draws.shape[-1])
    if len(x) < LEAST_POINTS:
        return None
    gradient = score.expand(x).gradient
    seeded = torch.Generator(x.device).manual_seed(0)  # the same draws, the same verdict
    return stein_test(x.double(), gradient.double(), generator=seeded)


def verdict(
    idata: Any,
    *,
    law: str | None = None,
    estimator_metrics: Mapping[str, Any] | None = None,
    stein: SteinTest | None = None,
    bias: DataFrame | None = None,
    table: DataFrame | None = None,
) -> Verdict:
    """Whether to trust the draws, in plain words, with a remedy for each problem.

    Args:
        idata: what `inference_data` returned.
        law: what the chains draw from, in words that follow "The chains draw from".
        estimator_metrics: held-out figures of a learned score; ``calibration`` is judged.
        stein: a test of the draws against their score.
        bias: what `step_bias` found of an unadjusted chain.
        table: what `summary` returned of the same draws, where it is at hand.

    Returns:
        The verdict; it is not trusted where a problem is fatal.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
    localization.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> verdict(inference_data({"x": x})).trusted
        True
    """
    draws = components(idata)
    table = summary(idata) if table is None else table
    relative = (table["mcse_mean"] / table["sd"]).to_numpy()
    known = relative[np.isfinite(relative)]
    return judge(
        Evidence(
            draws=draws,
            rhat=table["r_hat"].to_dict(),
            ess_bulk=table["ess_bulk"].to_dict(),
            ess_tail=table["ess_tail"].to_dict(),
            stats=components(idata, "sample_stats") if "sample_stats" in idata else {},
            law=law,
            estimator_metrics=estimator_metrics,
            stein=stein,
            bias={} if bias is None else bias.to_dict("index"),
            worst_mcse=float(known.max()) if len(known) else math.nan,
        )
    )


def step_bias(whole: Mapping[str, Any], half: Mapping[str, Any]) -> DataFrame:
    """What the step size does to the means and spreads of an unadjusted chain, by step halving.

    The bias of a step of weak order one is proportional to h: twice the change from h to h/2.

    Args:
        whole: draws at step size h by name, (chains, draws, ...).
        half: draws at h/2.

    Returns:
        A row for each component: `mean`, its bias in standard deviations, and `sd`, that of the
        standard deviation as a share of it, with their Monte Carlo standard errors, `mean_error`
        and `sd_error`.

    Raises:
        ValueError: no draws, or arrays that disagree in chains and draws.

    Source: Talay and Tubaro (1990), Expansion of the global error for numerical schemes.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> float(step_bias({"x": 1.1 * x}, {"x": x}).loc["x", "sd"].round(3))  # 2 (1.1 − 1)
        0.2
    """
    rows = {}
    one, other = (components(inference_data(draws)) for draws in (whole, half))
    for name, x in one.items():
        y = other[name]
        spread = y.std()
        errors = [
            [float(az.mcse(d.astype(float), method=m)) / spread for d in (x, y)]
            for m in ("mean", "sd")
        ]
        rows[name] = {
            "mean": 2 * (x.mean() - y.mean()) / spread,
            "mean_error": 2 * math.hypot(*errors[0]),
            "sd": 2 * (x.std() / spread - 1),
            "sd_error": 2 * math.hypot(*errors[1]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _figures(draws: np.ndarray) -> dict[str, float]:
    x = draws.astype(float)
    usable = _usable(draws)
    # halves in place of chains where there is one: ArviZ wants two
    chains = x if len(x) > 1 else x[:, : x.shape[1] // 2 * 2].reshape(2, -1)
    with np.errstate(invalid="ignore"):
        mean, sd = float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else math.nan
    return {
        "mean": mean,
        "sd": sd,
        "mcse_mean": float(az.mcse(x, method="mean")) if usable else math.nan,
        "ess_bulk": effective_sample_size(draws, "bulk"),
        "ess_tail": effective_sample_size(draws, "tail"),
        "r_hat": float(az.rhat(chains)) if usable and chains.shape[1] >= 4 else math.nan,
    }


def _usable(draws: np.ndarray) -> bool:
    """Whether ArviZ's figures are defined: at least 4 draws, finite, and not constant."""
    return draws.shape[1] >= 4 and bool(np.isfinite(draws).all()) and not is_constant(draws)


def _array(name: str, value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, but its dtype was {array.dtype}")
    return array


def _lead(arrays: Mapping[str, np.ndarray], expected: tuple[int, ...] | None) -> None:
    """All arrays share their (chains, draws)."""
    for name, array in arrays.items():
        if array.ndim < 2 or 0 in array.shape[:2]:
            raise ValueError(
                f"{name} must have shape (chains, draws, ...), none of them 0, but had "
                f"{array.shape}; from Pyro, use get_samples(group_by_chain=True)"
            )
        expected = array.shape[:2] if expected is None else expected
        if array.shape[:2] != expected:
            raise ValueError(
                f"{name} must have {expected[0]} chains of {expected[1]} draws like the rest, but "
                f"had shape {array.shape}"
            )


def _dataset(arrays: Mapping[str, np.ndarray], lead: tuple[str, ...]) -> Any:
    variables, coordinates = {}, {}
    for site, array in arrays.items():
        name = label(site)
        if name in variables:
            raise ValueError(
                f"names must differ with '.' for '/', but {site!r} is {name!r} then, which is "
                "another site's; rename one"
            )
        own = tuple(f"{name}_dim_{i}" for i in range(array.ndim - len(lead)))
        variables[name] = (lead + own, array)
        coordinates |= {
            dim: np.arange(size) for dim, size in zip(lead + own, array.shape, strict=True)
        }
    if taken := sorted(set(variables) & set(coordinates)):
        raise ValueError(
            f"names must not be those of dimensions, {sorted(coordinates)}, but {taken} are; "
            "rename the site (of a score or a distribution: site= of the kernel)"
        )
    return xr.Dataset(variables, coords=coordinates)


def _attribute(value: Any) -> Any:
    """What NetCDF can hold: numbers and text as they are, anything else as JSON."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return json.dumps(value, default=str)
