"""An installed ozaki, away from the checkout, does its job: run by .ci/run in an empty folder."""

from importlib.metadata import requires, version
from pathlib import Path

import ozaki
from ozaki import MCMC, DSMTrainer, ScoreEstimator, ScoreOzakiKernel, denoise

root = Path(ozaki.__file__).parent
assert "site-packages" in str(root), root
assert version("ozaki") == ozaki.__version__
assert (root / "py.typed").is_file()
assert any("mkdocs" in line for line in requires("ozaki") or ())

data = ozaki.datasets.old_faithful()  # shipped with the package
DSMTrainer(sigma=0.3, max_steps=50, seed=0).fit(data).save("estimator")
estimator = ScoreEstimator.load("estimator")
mcmc = MCMC(ScoreOzakiKernel(estimator), num_samples=50, warmup_steps=50, seed=0)
mcmc.run()
mcmc.report("report.html")
assert Path("report.html").stat().st_size > 10_000
assert denoise(estimator, data[:3]).mean.shape == (3, 2)
