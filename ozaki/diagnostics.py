"""Draws to InferenceData, and the figures that say whether to trust them (floor 4).

The only file that imports ArviZ. Works with ArviZ before 1.0, whose container is `InferenceData`,
and after, where it is xarray's `DataTree`. R-hat, ESS and MCSE are ArviZ's, rank-normalised as in
Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021).
"""

import itertools
import json
import math
import os
from collections.abc import Mapping
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
pd = lazy("pandas")
xr = lazy("xarray")

GROUPS = ("log_likelihood", "posterior_predictive", "prior", "prior_predictive")
LEAST_POINTS = 50  # for a test that could fail

__all__ = [
    "Problem",
    "SteinTest",
    "Verdict",
    "components",
    "dataset",
    "effective_sample_size",
    "inference_data",
    "kernel_stein_discrepancy",
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
            `xarray.Dataset` of them, which is not read.
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
        ValueError: no draws, arrays that disagree in chains and draws, or a name that is one of
            the dimensions'.
    """
    if not posterior:
        raise ValueError("posterior must hold the draws of at least one site, but was empty")
    groups = {"posterior": dataset(posterior)}
    lead = groups["posterior"].sizes["chain"], groups["posterior"].sizes["draw"]
    if sample_stats:
        groups["sample_stats"] = dataset(sample_stats, lead)
    if observed_data:
        observed = {name: _array(name, value) for name, value in observed_data.items()}
        groups["observed_data"] = _dataset(observed, ())
    for group, contents in others.items():
        validation.choice("groups", group, GROUPS)
        if contents:
            groups[group] = dataset(contents, None if group.startswith("prior") else lead)
    groups["posterior"].attrs = {name: _attribute(v) for name, v in (attrs or {}).items()}
    if hasattr(az, "InferenceData"):
        return az.InferenceData(**groups)
    return xr.DataTree.from_dict(groups)


def dataset(draws: Any, lead: tuple[int, ...] | None = None) -> Any:
    """Draws by site, each (chains, draws, *shape), as an `xarray.Dataset`; one of those as it is.

    Args:
        draws: tensors or arrays by name.
        lead: what (chains, draws) must be; None for whatever all have.

    Raises:
        ValueError: arrays that disagree in chains and draws, or a name that is a dimension's.
    """
    if isinstance(draws, xr.Dataset):
        return draws
    arrays = {name: _array(name, value) for name, value in draws.items()}
    _lead(arrays, lead)
    return _dataset(arrays, ("chain", "draw"))


def save(idata: Any, path: str | os.PathLike[str]) -> Path:
    """Write draws to a NetCDF file, whole or not at all.

    Returns:
        The path.

    Raises:
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = existing_folder(path)
    return storage.write_atomically(
        path, lambda file: idata.to_netcdf(str(file), engine="h5netcdf"), overwrite=True
    )


def load(path: str | os.PathLike[str]) -> Any:
    """Draws from a NetCDF file, as `save` or ArviZ wrote it, in memory.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or one without draws (chains, draws, ...).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; give draws in a .nc")
    try:
        idata = az.from_netcdf(str(path), engine="h5netcdf")
        idata.load()
    except Exception as error:  # h5py, h5netcdf and xarray have errors of many kinds
        raise ValueError(
            f"{path} is truncated, or not a NetCDF file of draws ({str(error) or type(error)})"
        ) from error
    # a method before ArviZ 1.0, paths after
    held: Any = idata.groups() if callable(idata.groups) else idata.groups
    groups = [str(group).strip("/") for group in held]
    if "posterior" not in groups or not idata["posterior"].data_vars:
        raise ValueError(f"{path} must hold a group 'posterior' of draws, but held {groups}")
    for name, variable in idata["posterior"].data_vars.items():
        if not {"chain", "draw"} <= set(variable.dims) or not variable.size:
            raise ValueError(
                f"{path}: {name} must have dimensions chain and draw, none of them 0, but had "
                f"{dict(variable.sizes)}"
            )
    return idata


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
            f"path must lie in a folder that exists, but there is no {path.parent}; make it first"
        )
    return path


def components(idata: Any, group: str = "posterior") -> dict[str, np.ndarray]:
    """Every scalar of a group by name, "x" or "x[0]" or "x[0, 1]", each (chains, draws)."""
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
    """
    rows = {name: _figures(draws) for name, draws in components(idata).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def effective_sample_size(draws: np.ndarray, method: str = "bulk") -> float:
    """ArviZ's ESS of draws (chains, draws); NaN where it is not defined."""
    return float(az.ess(draws, method=method)) if _usable(draws) else math.nan


def thinning(draws: np.ndarray) -> int:
    """How far apart draws must be to be nearly independent (correlation at most 0.02).

    The correlation is taken to fall off as ρᵏ with ρ = (τ − 1)/(τ + 1), where τ is draws by ESS of
    the slowest coordinate.

    Args:
        draws: (chains, draws, D).
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
) -> Verdict:
    """Whether to trust the draws, in plain words, with a remedy for each problem.

    Args:
        idata: what `inference_data` returned.
        law: what the chains draw from, in words that follow "The chains draw from".
        estimator_metrics: held-out figures of a learned score; ``calibration`` is judged.
        stein: a test of the draws against their score.
        bias: what `step_bias` found of an unadjusted chain.
    """
    draws = components(idata)
    table = summary(idata)
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
        standard deviation as a share of it, with their Monte Carlo standard errors.

    Source: Talay and Tubaro (1990), Expansion of the global error for numerical schemes.
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
    for name, array in arrays.items():
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
