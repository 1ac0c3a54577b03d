"""Every annotated call in ozaki has its shapes and types checked while the tests run."""

import getpass
import os
import tempfile

# here and in every process that a test starts: batches are small, so that a second thread only
# waits; and what is forked from a process with threads can wait for ever
os.environ["OMP_NUM_THREADS"] = "1"
# code compiled by tests is no user's, and is shared by the processes that test
os.environ["OZAKI_CACHE"] = os.path.join(tempfile.gettempdir(), f"ozaki-tests-{getpass.getuser()}")

import hypothesis
import jaxtyping
from jaxtyping import config, install_import_hook

decorated = jaxtyping.jaxtyped


def top_level(typechecker):
    """The hook's decorator, without functions inside of others: it makes those anew each call."""
    decorate = decorated(typechecker=typechecker)
    return lambda f: f if "<locals>" in getattr(f, "__qualname__", "") else decorate(f)


jaxtyping.jaxtyped = top_level
install_import_hook("ozaki", "tests.kit.checked.check")

import matplotlib  # noqa: E402
import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests.kit import checked  # noqa: E402

matplotlib.use("Agg")
DOT = (  # a grey pixel
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAA"
    "AABJRU5ErkJggg=="
)
torch.set_num_threads(1)

# the same examples every time: a failure on one machine is a failure on the next
hypothesis.settings.register_profile(
    "ozaki", derandomize=True, deadline=None, max_examples=25, database=None
)
hypothesis.settings.load_profile("ozaki")


@pytest.fixture(autouse=True)
def clean_slate():
    """Each test starts from the same global seed and leaves torch's defaults as they were."""
    dtype = torch.get_default_dtype()
    checked.begin()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture
def unchecked():
    """Shape checks off: a wrong argument meets ozaki's own error, as a user's would.

    Long chains and trainings are unchecked too: the tests of each part make the checks.
    """
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages have a dot in place of each figure: drawing takes most of a page's time.

    The tests of pages draw them.
    """
    monkeypatch.setattr("ozaki.report.plots.encode", lambda figure: DOT)
