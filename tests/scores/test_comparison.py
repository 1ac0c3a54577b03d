"""The ranking of estimates of s2, against the truth that it does not see."""

import pytest
import torch

from ozaki.linalg import Diagonal
from ozaki.scores import Expansion, GaussianMixtureScore, Score, compare
from ozaki.scores.comparison import CONSTANT
from ozaki.scores.learned.trainer import DSMTrainer
from tests.kit.tolerances import MCSE

G = torch.Generator().manual_seed(3)
LAW = GaussianMixtureScore(
    torch.tensor([[-1.5, 0.0, 0.5], [1.5, 0.5, -0.5]]),
    torch.diag_embed(torch.tensor([[0.3, 0.2, 0.4], [0.2, 0.5, 0.1]])),
)
DATA = LAW.sample(6000, G)


class Wrong(Score):
    """The exact score, whose s2 is off by a constant."""

    def __init__(self, law: Score, by: float):
        self.law, self.by = law, by
        self.dim, self.event_shape, self.dtype = law.dim, law.event_shape, law.dtype

    @property
    def default_curvature(self):
        return "diagonal"

    def expand(self, x, curvature=None):
        found = self.law.expand(x, curvature)
        if curvature is None:
            return found
        return Expansion(found.gradient, Diagonal(found.curvature.diagonal() + self.by), None)

    def start(self, n, generator=None):
        return self.law.start(n, generator)


@pytest.fixture(scope="module")
def estimator():
    return DSMTrainer(0.3, seed=0, max_steps=400).fit(DATA[:5000])


@pytest.mark.thorough
def test_the_ranking_is_that_of_the_true_errors(estimator):
    smooth = LAW.smooth(estimator.noise_scale)
    others = {"exact": smooth, "off by 0.5": Wrong(smooth, 0.5), "off by 2": Wrong(smooth, 2.0)}
    found = compare(estimator, DATA[5000:], others, generator=G, draws=50_000)
    names = [c.name for c in found]
    assert sorted(names) == sorted([*others, "head", "autodiff", CONSTANT])
    assert names.index("exact") < names.index("off by 0.5") < names.index("off by 2")
    assert names.index("head") < names.index(CONSTANT)
    # the excess is the squared error of σ² s2, up to its standard error
    loss = {c.name: c for c in found}
    noise = estimator.noise_scale
    for by in (0.5, 2.0):
        gap = loss[f"off by {by:g}"].loss - loss["exact"].loss
        expected = float((noise**4).sum()) * by**2
        error = loss[f"off by {by:g}"].error + loss["exact"].error
        assert abs(gap - expected) < MCSE * error
    assert found.best == names[0] and found[0].excess == 0
    table = str(found)
    assert all(name in table for name in names) and "std. error" in table


@pytest.mark.slow
def test_low_rank_estimators_are_compared_on_all_entries():
    estimator = DSMTrainer(0.3, curvature="low_rank", rank=2, seed=0, max_steps=200).fit(
        DATA[:5000]
    )
    smooth = LAW.smooth(estimator.noise_scale)
    found = compare(estimator, DATA[5000:], {"exact": smooth}, generator=G)
    names = [c.name for c in found]
    assert names.index("exact") < names.index(CONSTANT)


@pytest.mark.thorough
def test_what_cannot_be_compared_is_named(estimator):
    alone = DSMTrainer(0.3, curvature=None, seed=0, max_steps=5, width=8).fit(DATA)
    with pytest.raises(ValueError, match="must have learned s2"):
        compare(alone, DATA)
    wide = DSMTrainer(0.5, seed=0, max_steps=5, width=8).fit(DATA)
    with pytest.raises(ValueError, match=r"others\['wide'\] must have the estimator's noise_scale"):
        compare(estimator, DATA, {"wide": wide})
    with pytest.raises(ValueError, match="which is taken"):
        compare(estimator, DATA, {"head": estimator})
    flat = DSMTrainer(0.3, seed=0, max_steps=5, width=8).fit(DATA[:, :2])
    with pytest.raises(ValueError, match="must have event shape"):
        compare(estimator, DATA, {"flat": flat})
    ranged = DSMTrainer((0.1, 0.5), seed=0, max_steps=5, width=8).fit(DATA)
    with pytest.raises(ValueError, match=r"use estimator\.at"):
        compare(ranged, DATA)


@pytest.mark.thorough
def test_estimators_of_another_dtype_are_compared(estimator):
    data = DATA[:500]
    settings = dict(seed=0, max_steps=5, width=8)
    narrow = DSMTrainer(0.3, **settings).fit(data)
    wide = DSMTrainer(0.3, precision="64-true", **settings).fit(data.double())
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    for one, other in ((narrow, wide), (wide, narrow)):
        assert len(compare(one, data, {"other": other}, draws=500)) == 4


def test_a_small_noise_in_conflict_is_noticed():
    tiny = DATA[:500].double() * 1e-9
    one, other = (DSMTrainer(s, seed=0, max_steps=5, width=8).fit(tiny) for s in (0.3, 0.5))
    with pytest.raises(ValueError, match=r"others\['other'\] must have the estimator's noise"):
        compare(one, tiny, {"other": other})


def test_a_candidate_of_diagonals_alone_is_named_before_anything_is_computed(monkeypatch):
    settings = dict(seed=0, max_steps=5, width=8)
    ranked = DSMTrainer(0.3, curvature="low_rank", rank=1, **settings).fit(DATA[:500])
    plain = DSMTrainer(0.3, **settings).fit(DATA[:500])
    first = DSMTrainer(0.3, curvature=None, **settings).fit(DATA[:500])
    assert len(compare(plain, DATA[:500], {"ranked": ranked}, draws=500)) == 4
    monkeypatch.setattr("ozaki.scores.comparison._blocks", None)
    with pytest.raises(ValueError, match=r"others\['plain'\] must give all entries of s2"):
        compare(ranked, DATA[:500], {"plain": plain})
    with pytest.raises(ValueError, match=r"others\['first'\] must give the diagonal of s2"):
        compare(plain, DATA[:500], {"first": first})
