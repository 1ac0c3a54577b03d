"""`ScoreKernel` has the methods that `pyro.infer.MCMC`, `StreamingMCMC` and `ozaki.MCMC` call.

It is a thin layer over `Engine`; its methods stand in the order in which Pyro calls them. It turns
any `model` into a score over flat unconstrained points, and sites' tensors into points and back.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Distribution, Transform

from ozaki.foundation import validation
from ozaki.foundation.deprecation import attribute_renamed
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.kernels.compiled import Compiled
from ozaki.kernels.engine import Engine
from ozaki.kernels.metropolis import Correction
from ozaki.kernels.processes import Team
from ozaki.kernels.proposals import Proposal
from ozaki.kernels.selection import can_turn, opening_of, tracks_of
from ozaki.kernels.target import (
    LONE,
    Model,
    RunContext,
    Target,
    bind,
    check_model,
    checked_trajectory,
)
from ozaki.kernels.transition import Info, KernelSpec, Trail
from ozaki.kernels.warmup import Candidate, Warmup, schedule
from ozaki.scores.base import CurvatureKind, Score
from ozaki.scores.pyro_models.layout import check_initial_params
from ozaki.scores.pyro_models.model import InitStrategy
from ozaki.scores.transformed import Guided

DENSE = 256
"""Dimensions up to which the metric is a matrix."""


class Suspended(NamedTuple):
    """Chains that were taken out of their kernel, so that another run can resume them."""

    target: Target
    engine: Engine
    warmup_steps: int | Literal["auto"]
    context: RunContext


class ScoreKernel(MCMCKernel):
    """The base of all kernels; build one of them, not this, or derive your own.

    Attributes:
        proposal: points, their expansion and a step size → a Gaussian step; a staticmethod.
        target_acceptance: the acceptance that warm-up seeks, by correction.
        candidates: other steps that warm-up tries, and settles on where they move further.
    """

    proposal: Proposal
    target_acceptance: ClassVar[dict[Correction, float]]
    candidates: ClassVar[tuple[Candidate, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Take the attributes under their old names, `_proposal` and `_acceptance`, too."""
        super().__init_subclass__(**options)
        if "_proposal" in vars(cls) and "candidates" not in vars(cls):
            cls.candidates = ()  # there were none when it was written
        attribute_renamed(cls, "_proposal", "proposal", "0.3")
        attribute_renamed(cls, "_acceptance", "target_acceptance", "0.3")

    def competing(self, frozen: bool) -> tuple[Candidate, ...]:
        """The candidates that these settings leave to warm-up; all of them by default.

        Args:
            frozen: whether one curvature serves all points.
        """
        return self.candidates

    def __init__(
        self,
        model: Model,
        *,
        score: Score | None = None,
        step_size: float | None = None,
        curvature: CurvatureKind | str | None = "auto",
        frozen: bool | str = "auto",
        metropolis: Correction | str = "auto",
        compile: bool = False,
        site: str = "x",
        jitter: float = 0.0,
        trajectory: int | float | str = "auto",
        init_strategy: InitStrategy | None = None,
    ):
        check_model(model, score, init_strategy)
        if step_size is not None:
            step_size = validation.positive("step_size", step_size)
        validation.choice("metropolis", metropolis, ("auto", "none", "exact", "line_integral"))
        if frozen != "auto" and not isinstance(frozen, bool):
            raise ValueError(f"frozen must be True, False or 'auto', but was {frozen!r}")
        validation.flag("compile", compile)
        if not isinstance(site, str) or not site:
            raise ValueError(f"site must be a name, but was {site!r}")
        self._trajectory = checked_trajectory(trajectory)
        self._init_strategy = init_strategy
        self._source, self.guide = model, score
        self._step_size, self._metropolis = step_size, metropolis
        self._curvature, self._frozen, self._site = curvature, frozen, site
        self._jitter = validation.share("jitter", jitter)
        self._compile, self._compiled = compile, Compiled()
        # MCMC and converters read it: None where there is no Pyro model
        self.model = None if isinstance(model, (Score, Distribution)) else model
        self.transforms: dict[str, Transform] | None = None
        self._warmup_steps: int | Literal["auto"] = 0
        self._clear()

    def _clear(self) -> None:
        """Forget the chains of the last run, but not the settings that outlive it."""
        self._context = LONE
        self._target: Target | None = None
        self._engine: Engine | None = None
        self._initial_params: dict[str, Tensor] | None = None
        self._divergences: list[list[int]] = []
        self._accepted, self._counted = 0.0, 0
        self._returned: Tensor | None = None

    # -- what pyro.infer.MCMC calls, in its order -------------------------------------------------

    @ordinary()
    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Bind the model to its arguments and begin anew, with one chain."""
        self.begin(self.bind(args, kwargs), warmup_steps, LONE)

    @property
    @ordinary()
    def initial_params(self) -> dict[str, Tensor]:
        """Where the chain begins: site → unconstrained tensor, drawn from the score if not given.

        With `num_chains` set, every tensor has a leading chain dimension.
        """
        target = self._bound()
        leading = () if self.num_chains is None else (self.num_chains,)
        if self._initial_params is None:
            start = target.score.start(self.num_chains or 1, self.generator)
            self._initial_params = target.sites.unflatten(
                start if self.num_chains is not None else start[0]
            )
        else:
            check_initial_params(self._initial_params, target.sites, leading)
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor] | None) -> None:
        self._initial_params = params

    @ordinary()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step from `params`, unconstrained; a batch of chains if `num_chains` is set."""
        self.place(params)
        self.walk(1)
        return self.params

    def logging(self) -> Any:
        """Step size, mean acceptance, trajectory and divergences so far, for the progress bar."""
        seen = f"{self.acceptance_rate:.3f}" if self._counted else "warm-up"
        size = "–" if self._engine is None else f"{self._engine.step_size:.2e}"
        found: OrderedDict[str, Any] = OrderedDict([("step size", size), ("acc. prob", seen)])
        if self._engine is not None and self._engine.time:
            found["trajectory"] = f"{self._engine.time:.2f}"
        if diverged := sum(map(len, self._divergences)):
            found["divergences"] = diverged
        return found

    def diagnostics(self) -> dict[str, Any]:
        """Post-warm-up divergences, as draw indices, and the mean acceptance, of a lone chain."""
        found = self._divergences[0] if self._divergences else []
        return {"divergences": found, "acceptance rate": self.acceptance_rate}

    def cleanup(self) -> None:
        """Free the chain; the transforms stay."""
        self._clear()

    # -- what ozaki.MCMC calls and reads -------------------------------------------------------

    def begin(
        self, target: Target, warmup_steps: int | Literal["auto"], context: RunContext
    ) -> None:
        """Begin anew on a model that `bind` made; starting points that were given stay.

        Args:
            target: what `bind` returned.
            warmup_steps: how many steps adapt; "auto" ends once they have settled.
            context: the run that the chains are of.
        """
        given = self._initial_params
        self._clear()
        self._target, self._warmup_steps, self._context = target, warmup_steps, context
        self.transforms = target.transforms
        self._initial_params = given

    @ordinary()
    def bind(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Target:
        """Give the model its arguments, and make it a score over flat points.

        Args:
            args: of a Pyro model.
            kwargs: of it, by name.

        Raises:
            ValueError: what cannot be walked on.
        """
        return bind(self._source, args, kwargs or {}, self._site, self._init_strategy)

    @property
    def num_chains(self) -> int | None:
        """How many chains a step moves; None for a lone chain without a batch dimension."""
        return self._context.num_chains

    @property
    def generator(self) -> torch.Generator | None:
        """The source of noise; None for torch's global one."""
        return self._context.generator

    @property
    def team(self) -> Team:
        """The processes that share the chains."""
        return self._context.team

    @property
    def step_size(self) -> float | None:
        """The h that the kernel was given; None where warm-up finds one."""
        return self._step_size

    def place(self, params: dict[str, Tensor]) -> None:
        """Put the chains at `params`, unless they are there."""
        target = self._bound()
        x = target.sites.flatten(recordable(params)).detach()
        x = (x if self.num_chains is not None else x.unsqueeze(0)).to(target.score.dtype)
        if self._engine is None:
            self._engine = self._make_engine(target, x)
            self._engine.start(x)
            self._divergences = [[] for _ in range(len(x))]
        elif self._returned is None or not torch.equal(x, self._returned):
            # a caller may move the chain, by however little
            self._engine.start(x)

    def walk(self, most: int) -> Trail:
        """Take at most `most` steps of chains that were placed, and at least one."""
        engine = self.engine
        warming_up = engine.warming_up
        trail = engine.walk(most)
        if not warming_up:
            self._count(trail.info)
        self._returned = engine.position
        return trail

    @property
    def params(self) -> dict[str, Tensor]:
        """Where the chains are, site → unconstrained tensor."""
        # copied: what a hook does to it in place is seen by `place`, and moves the chains
        position = self.engine.position.clone()
        lone = self.num_chains is None
        return self._bound().sites.unflatten(position[0] if lone else position)

    @property
    def acceptance_rate(self) -> float:
        """The mean (pseudo-)acceptance after warm-up."""
        return self._accepted / self._counted if self._counted else float("nan")

    @property
    def warmup_total(self) -> int:
        """How many steps warm-up takes; the most that it may where it ends by itself."""
        if self._engine is not None:
            return self._engine.warmup.plan.total
        return schedule(self._warmup_steps).total

    @property
    def engine(self) -> Engine:
        """The engine that holds the current chains."""
        if self._engine is None:
            raise RuntimeError("no chain has been walked yet: call sample first")
        return self._engine

    @property
    def target(self) -> Target:
        """The bound model."""
        return self._bound()

    @property
    def divergences(self) -> list[list[int]]:
        """Per chain, the draws that diverged."""
        return self._divergences

    def settings(self) -> dict[str, Any]:
        """The arguments that the kernel was built with, as JSON has them."""
        return {
            "step_size": self._step_size,
            "curvature": self._curvature,
            "frozen": self._frozen,
            "metropolis": self._metropolis,
            "jitter": self._jitter,
            "trajectory": self._trajectory,
        }

    def suspend(self) -> "Suspended":
        """Return the current chains, which `cleanup` would forget, for `take_up`."""
        return Suspended(self._bound(), self.engine, self._warmup_steps, self._context)

    def take_up(self, suspended: "Suspended") -> dict[str, Tensor]:
        """Resume suspended chains; return where they are, site → unconstrained tensor."""
        self._target, self._engine, self._warmup_steps, self._context = suspended
        self.transforms = suspended.target.transforms
        suspended.target.score.resettle()
        return self._place()

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Resume from what the engine's `tensors` and `numbers` gave; `setup` comes first."""
        target = self._bound()
        self._engine = self._make_engine(target, tensors["walk.position"].to(target.score.device))
        self._engine.restore(tensors, numbers)
        self._initial_params = self._place()

    # -- inside -----------------------------------------------------------------------------------

    def _place(self) -> dict[str, Tensor]:
        """Return where the chains are, and note it, so that `place` sees if a caller moves them."""
        self._returned = position = self.engine.position
        self._divergences = [[] for _ in range(len(position))]
        return self._bound().sites.unflatten(position)

    def _bound(self) -> Target:
        if self._target is None:
            raise RuntimeError("setup(warmup_steps, *args) comes first; MCMC.run calls it")
        return self._target

    def _make_engine(self, target: Target, x: Tensor) -> Engine:
        """Choose correction, curvature and warm-up for the model, and build the engine."""
        score = target.score
        has_density = score.expand(x[:1]).has_density
        correction: Any = self._metropolis
        if correction == "auto":
            correction = "exact" if has_density else "line_integral"
        if correction == "exact" and not has_density:
            raise ValueError(
                "metropolis='exact' needs a log density, but this score has none; use "
                "'line_integral', or 'none' for the unadjusted chain"
            )
        if self.guide is not None:
            if correction != "exact":
                raise ValueError(
                    f"metropolis must be 'exact' where score= is given, but was {correction!r}: "
                    "only then is the law the model's and not the score's"
                )
            score = Guided(score, self.guide)
        kind: Any = score.default_curvature if self._curvature == "auto" else self._curvature
        if kind is None and self._curvature is not None:
            raise ValueError(
                f"model must give a curvature for {type(self).__name__}, but this "
                f"{type(score).__name__} has none; train it with curvature='diagonal', or use "
                "ScoreLangevinKernel"
            )
        spec = KernelSpec(type(self).proposal, kind, correction)
        adapting, frozen = self._step_size is None, self._frozen is True
        self._check_trajectory(spec, frozen)
        tracks = tracks_of(
            spec,
            self.competing(frozen),
            self.target_acceptance,
            score.dim,
            trajectory=self._trajectory if adapting or self._trajectory != "auto" else 0.0,
            adapting=adapting,
            frozen=self._frozen,
        )
        warmup = Warmup(
            tracks,
            score.dim,
            steps=self._warmup_steps,
            opening=opening_of(
                spec, tracks, score.dim, len(x), adapting=adapting, frozen=self._frozen
            ),
            step_size=self._step_size,
            frozen=kind if frozen else None,
            dense_metric=score.dim <= DENSE,
        )
        return Engine(
            score,
            warmup,
            generator=self.generator,
            jitter=self._jitter,
            compiled=self._compiled if self._compile else None,
            team=self.team,
        )

    def _check_trajectory(self, spec: KernelSpec, frozen: bool) -> None:
        """Refuse trajectories of steps that read the curvature at every point."""
        if self._trajectory == "auto" or self._trajectory == 0 or frozen:
            return
        moves = any(
            can_turn(one) for one in (spec.proposal, *(c[0] for c in self.competing(False)))
        )
        if moves and (self._step_size is None or spec.curvature is None):
            return
        raise ValueError(
            f"trajectory must be 'auto' or 0 where steps read the curvature at every point, but "
            f"was {self._trajectory}: such steps share no momentum; give frozen=True, or leave "
            "curvature and step_size out"
        )

    def _count(self, info: Info) -> None:
        for step, chain in info.diverging.nonzero().tolist():
            self._divergences[chain].append(self._counted + step)
        self._accepted += float(info.acceptance.mean(1).sum())
        self._counted += len(info.acceptance)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs: the model and the settings, not the chain."""
        state = self.__dict__.copy()
        state.update(_target=None, _engine=None, _returned=None, _context=LONE)
        return state
