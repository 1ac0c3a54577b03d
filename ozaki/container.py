"""What keeps draws for ArviZ, in memory and in a file (floor 1).

Works with ArviZ before 1.0, whose container is `InferenceData`, and after, where it is xarray's
`DataTree`.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ozaki import storage, validation
from ozaki.lazy import lazy

az = lazy("arviz")
h5py = lazy("h5py")
xr = lazy("xarray")

GROUPS = ("log_likelihood", "posterior_predictive", "prior", "prior_predictive")
LAYOUT = 2**13  # bytes a variable in a file of draws, beside its values
COPY = "restore it from a copy, or draw again"
DEEPEST = 4  # groups within groups, where ArviZ has one
TEXT = 64  # bytes of a short text in memory


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
    sizes = variable.sizes
    if not {"chain", "draw"} <= set(sizes) or 0 in (sizes["chain"], sizes["draw"]):
        raise ValueError(
            f"{path}: {name} must have dimensions chain and draw, none of them 0, but had "
            f"{validation.short(str(dict(sizes)))}"
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


def components(
    idata: Any, group: str = "posterior", marked: str | None = None
) -> dict[str, np.ndarray]:
    """Every scalar of a group by name, "x" or "x[0]" or "x[0, 1]".

    Args:
        idata: what `inference_data` returned.
        group: whose variables, as ArviZ names it.
        marked: an attribute; only the variables for which it is set and not 0 or empty.

    Returns:
        Arrays by name, each (chains, draws).

    Raises:
        ValueError: a site that is called as an entry of another is.

    Example:
        >>> sorted(components(inference_data({"x": torch.zeros(4, 100, 2)})))
        ['x[0]', 'x[1]']
    """
    found = {}
    for name, variable in idata[group].data_vars.items():
        if marked is not None and not variable.attrs.get(marked):
            continue
        values = variable.transpose("chain", "draw", ...).values
        for index in itertools.product(*map(range, values.shape[2:])):
            label = f"{name}[{', '.join(map(str, index))}]" if index else str(name)
            if label in found:
                raise ValueError(
                    f"names must differ, but {label!r} is a site and an entry of another; rename "
                    "one"
                )
            found[label] = values[(..., *index)]
    return found


def _array(name: str, value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
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
