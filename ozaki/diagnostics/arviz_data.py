"""These functions keep draws in ArviZ's containers, in memory and in files.

They work with ArviZ before 1.0, whose container is `InferenceData`, and after, where it is xarray's
`DataTree`.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy

az = lazy("arviz")

h5py = lazy("h5py")

xr = lazy("xarray")

GROUPS = ("log_likelihood", "posterior_predictive", "prior", "prior_predictive")

FACTS = (
    "circular",
    "saturated",
    "flat",
    "masked",
    "centred",
)  # facts about a site, as `ozaki.sampling.site_facts` finds them

STORED_FACTS = "facts"  # the attribute of a store's posterior that holds them, by site

TEXT = 64  # bytes of a short text in memory

RUN = "ozaki_run"  # the attribute of a store by which a run knows it

LEAD = ("chain", "draw")

RENAME = "rename the site (of a score or a distribution: site= of the kernel)"

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)

UNNAMED = re.compile(r"dim_\d+")  # as xarray calls a dimension that nobody named

# names that HDF5, Zarr, or the libraries that write them, reserve
RESERVED = re.compile(r"\.*|.*\0.*|_nc4_non_coord_.*|zarr\.json", re.DOTALL)


def inference_data(
    posterior: Mapping[str, Any],
    sample_stats: Mapping[str, Any] | None = None,
    observed_data: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **others: Mapping[str, Any],
) -> Any:
    """Put draws into ArviZ's container: one labelled data set a group.

    Args:
        posterior: draws by site, each a tensor or array (chains, draws, *shape), or a DataArray
            with dimensions ``chain`` and ``draw`` wherever they stand; or an `xarray.Dataset` of
            them, which is not read. A '/' in a name becomes '.' (`label`).
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
            draws, DataArrays that name other dimensions, another group, or a name that is one of
            the dimensions' or that no file can hold.

    Example:
        >>> idata = inference_data({"x": torch.zeros(4, 100, 2)}, attrs={"seed": 0})
        >>> dict(idata["posterior"].sizes)
        {'chain': 4, 'draw': 100, 'x_dim_0': 2}
    """
    found = {"posterior": dataset(posterior)}
    if not found["posterior"].data_vars:
        raise ValueError("posterior must hold the draws of at least one site, but was empty")
    lead = found["posterior"].sizes["chain"], found["posterior"].sizes["draw"]
    if sample_stats is not None and len(sample_stats):
        found["sample_stats"] = dataset(sample_stats, lead)
    if observed_data is not None and len(observed_data):
        observed = {name: _array(name, value) for name, value in observed_data.items()}
        found["observed_data"] = _dataset(observed, ())
    for group, contents in others.items():
        validation.choice("groups", group, GROUPS)
        if contents is not None and len(contents):
            found[group] = dataset(contents, None if group.startswith("prior") else lead)
    found["posterior"].attrs = {name: _attribute(v) for name, v in (attrs or {}).items()}
    return gathered(found)


def gathered(found: Mapping[str, Any]) -> Any:
    """Put data sets into ArviZ's container, by the names of their groups.

    Args:
        found: an `xarray.Dataset` by the name of its group.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on.

    Example:
        >>> idata = gathered({"posterior": dataset({"x": torch.zeros(4, 100)})})
        >>> groups(idata)
        ['posterior']
    """
    # later ArviZ has an InferenceData too, which is a DataTree and takes no groups by name
    if int(version("arviz").split(".")[0]) < 1:
        return az.InferenceData(**found)
    return xr.DataTree.from_dict(dict(found))


def dataset(draws: Any, lead: tuple[int, ...] | None = None) -> Any:
    """Draws by site, each (chains, draws, *shape), as an `xarray.Dataset`; one of those as it is.

    Args:
        draws: tensors or arrays by name; or DataArrays, whose chains and draws are those of their
            dimensions ``chain`` and ``draw``.
        lead: what (chains, draws) must be; None for whatever all have.

    Returns:
        The data set, with dimensions ``chain``, ``draw`` and, of a site, ``name_dim_0``, …

    Raises:
        ValueError: no draws by name, entries that are no numbers, arrays that disagree in chains
            and draws, DataArrays that name other dimensions, or a name that is a dimension's or
            that no file can hold.

    Example:
        >>> dict(dataset({"x": torch.zeros(4, 100)}).sizes)
        {'chain': 4, 'draw': 100}
    """
    if hasattr(draws, "to_dataset") and getattr(draws, "data_vars", None):  # of a DataTree
        draws = draws.to_dataset()
    if isinstance(draws, xr.Dataset):
        _check_labelled(draws, lead)
        return draws
    if not isinstance(draws, Mapping) or hasattr(draws, "groups"):
        raise ValueError(
            "draws must be a dict of site → array (chains, draws, ...), or an xarray.Dataset of "
            f"them, but were a {type(draws).__name__}; of a whole InferenceData give one group, "
            "such as idata['posterior']"
        )
    if unfit := [name for name in draws if not isinstance(name, str)]:
        raise ValueError(
            f"names of draws must be texts, but {validation.short(repr(unfit[0]))} was a "
            f"{type(unfit[0]).__name__}; give {validation.short(repr(str(unfit[0])))}"
        )
    arrays = {name: _drawn(name, value) for name, value in draws.items()}
    _lead(arrays, lead)
    return _dataset(arrays, LEAD)


def label(site: str) -> str:
    r"""A site's name where draws are kept for ArviZ: '.' for '/' or '\', which part groups there.

    Args:
        site: as the model names it.

    Returns:
        The name of the variable.

    Example:
        >>> label("encoder/weight")
        'encoder.weight'
    """
    return site.replace("/", ".").replace("\\", ".")


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


def components(
    idata: Any, group: str = "posterior", marked: str | None = None
) -> dict[str, np.ndarray]:
    """Every scalar of a group by name, "x" or "x[0]" or "x[0, 1]".

    Args:
        idata: what `inference_data` returned.
        group: whose variables, as ArviZ names it.
        marked: an attribute; only the variables for which it is set and not 0 or empty.

    Returns:
        Arrays by name, each (chains, draws). Variables that are no numbers by chain and draw are
        left out: `left_out` names them.

    Raises:
        ValueError: no such group, or a site that is called as an entry of another is.

    Example:
        >>> sorted(components(inference_data({"x": torch.zeros(4, 100, 2)})))
        ['x[0]', 'x[1]']
    """
    found = {}
    for name, variable in drawn(idata, group).items():
        if marked is not None and not variable.attrs.get(marked):
            continue
        values = variable.values
        for index in itertools.product(*map(range, values.shape[2:])):
            one = component(name, index)
            if one in found:
                raise ValueError(
                    f"names must differ, but {one!r} is a site and an entry of another; rename one"
                )
            found[one] = values[(..., *index)]
    return found


def attach(found: Any, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write facts about sites into the attributes of their variables, in place.

    Args:
        found: an `xarray.Dataset`.
        facts: site → attribute → value, of `FACTS`.
    """
    for site, known in facts.items():
        if (name := label(site)) in found.data_vars:  # a site that was left out has no variable
            found[name].attrs.update({key: known[key] for key in FACTS if key in known})


def component(site: str, index: Sequence[int]) -> str:
    """Return the name of an entry of a site: "x", "x[0]", "x[0, 1]"."""
    return f"{site}[{', '.join(map(str, index))}]" if index else site


def drawn(idata: Any, group: str = "posterior") -> dict[str, Any]:
    """The variables of a group that are numbers by chain and draw.

    Args:
        idata: what `inference_data` returned.
        group: whose variables, as ArviZ names it.

    Returns:
        DataArrays by name, each (chains, draws, ...) whatever the order of its dimensions was.

    Raises:
        ValueError: no such group.

    Example:
        >>> drawn(inference_data({"x": torch.zeros(4, 100, 2)}))["x"].dims
        ('chain', 'draw', 'x_dim_0')
    """
    return {
        name: variable.transpose(*LEAD, ...)
        for name, variable, wrong in _judged(idata, group)
        if not wrong
    }


def left_out(idata: Any) -> list[str]:
    """Name the posterior's and statistics' variables that are no numbers by chain and draw.

    Other samplers keep texts there, or one number a chain: a verdict says nothing about those.

    Args:
        idata: what `inference_data` returned.

    Returns:
        For each variable its name, its group, and why.

    Raises:
        ValueError: no posterior beside statistics.

    Example:
        >>> group = dataset({"x": torch.zeros(4, 100)}).assign(named=("chain", list("abcd")))
        >>> left_out(gathered({"posterior": group}))
        ["named of posterior (dimensions ('chain',))"]
    """
    return [
        f"{validation.short(name)} of {group} ({wrong})"
        for group in ("posterior", "sample_stats")
        if group in groups(idata)
        for name, _, wrong in _judged(idata, group)
        if wrong
    ]


def _judged(idata: Any, group: str) -> Iterator[tuple[str, Any, str]]:
    """Return the variables of a group, each with why it holds no draws; empty where it does."""
    held = groups(idata)
    if group not in held:
        raise ValueError(f"idata must have a group {group!r}, but had {held}")
    lead = idata["posterior"].sizes if group == "sample_stats" else idata[group].sizes
    for name, variable in idata[group].data_vars.items():
        sizes = variable.sizes
        if not set(LEAD) <= set(sizes):
            wrong = f"dimensions {validation.short(str(variable.dims))}"
        elif variable.dtype.kind not in "biuf":
            wrong = f"dtype {variable.dtype}"
        elif any(sizes[dim] != lead.get(dim) for dim in LEAD):
            wrong = f"{sizes['chain']} chains of {sizes['draw']} draws, unlike the posterior"
        else:
            wrong = ""
        yield str(name), variable, wrong


def _check_labelled(draws: Any, lead: tuple[int, ...] | None) -> None:
    """Check that a data set from elsewhere has as many chains and draws as the rest."""
    sizes = {str(dim): size for dim, size in draws.sizes.items()}
    if draws.data_vars and not all(sizes.get(dim, 0) for dim in LEAD):
        unstack = "; of az.extract, give .unstack('sample')" if "sample" in sizes else ""
        raise ValueError(
            f"a data set of draws must have dimensions chain and draw, none of them 0, but had "
            f"{validation.short(str(sizes))}{unstack}"
        )
    if lead is not None and tuple(sizes.get(dim) for dim in LEAD) != tuple(lead):
        raise ValueError(
            f"a data set must have {lead[0]} chains of {lead[1]} draws like the rest, but had "
            f"{validation.short(str(sizes))}"
        )


def _drawn(name: str, value: Any) -> np.ndarray:
    """Move chains and draws to the front; they are found by name where dimensions have names."""
    if isinstance(value, (xr.DataArray, xr.Variable)):
        dims = [str(dim) for dim in value.dims]
        if set(LEAD) <= set(dims):
            value = value.transpose(*LEAD, ...)
        elif not all(UNNAMED.fullmatch(dim) for dim in dims):
            raise ValueError(
                f"{name} must have dimensions chain and draw, but had {tuple(dims)}; rename them, "
                "or give .values, (chains, draws, ...)"
            )
    return _array(name, value)


def _array(name: str, value: Any) -> np.ndarray:
    """Turn a value into an array of numbers that NumPy and files can hold."""
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name} must not be masked, but {int(np.ma.count_masked(value))} of its entries were; "
            "remove or impute them"
        )
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.layout is not torch.strided:
            raise ValueError(
                f"{name} must be dense, but its layout was {value.layout}; give its .to_dense()"
            )
        # NumPy has neither bfloat16 nor 8 bits
        foreign = value.is_floating_point() and value.dtype not in NUMPY_FLOATS
        value = value.float() if foreign else value
        array = value.resolve_conj().numpy()
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        parts = "; give the real and imaginary parts a name each" if array.dtype.kind == "c" else ""
        raise ValueError(f"{name} must be numbers, but its dtype was {array.dtype}{parts}")
    return array


def _lead(arrays: Mapping[str, np.ndarray], expected: tuple[int, ...] | None) -> None:
    """Raise ValueError unless all arrays share their (chains, draws)."""
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
    """Make a data set of arrays, with a dimension and a coordinate for each of their axes."""
    variables, coordinates = {}, {}
    for site, array in arrays.items():
        name = label(site)
        if name in variables:
            raise ValueError(
                f"names must differ with '.' for '/', but {site!r} is {name!r} then, which is "
                "another site's; rename one"
            )
        if not _writable(name):
            raise ValueError(f"names must be fit for a file, but {site!r} is not; {RENAME}")
        own = tuple(f"{name}_dim_{i}" for i in range(array.ndim - len(lead)))
        variables[name] = (lead + own, array)
        coordinates |= {
            dim: np.arange(size) for dim, size in zip(lead + own, array.shape, strict=True)
        }
    if taken := sorted(set(variables) & set(coordinates)):
        raise ValueError(
            f"names must not be those of dimensions, {sorted(coordinates)}, but {taken} are; "
            f"{RENAME}"
        )
    return xr.Dataset(variables, coords=coordinates)


def _writable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return not RESERVED.fullmatch(name)


def _attribute(value: Any) -> Any:
    """Turn a value into one that NetCDF can hold: numbers and text as they are, else JSON."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return json.dumps(value, default=str)
