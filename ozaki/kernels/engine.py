"""Chains in flight: a state, and the warm-up that shapes the next step (floor 5).

One engine serves both faces: one chain in the stock `pyro.infer.MCMC`, a batch in `ozaki.MCMC`.
It holds the only mutable state of a run; everything it calls is pure.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ozaki.kernels import adaptation, transition
from ozaki.kernels.adaptation import DualAveraging, JumpRecord, MeanCurvature, PooledCovariance
from ozaki.kernels.proposals import langevin
from ozaki.kernels.transition import Info, Method, State
from ozaki.kernels.wrappers import Frozen, Whitened
from ozaki.linalg import Dense, Diagonal
from ozaki.scores.base import Score
from ozaki.shapes import Float

LANGEVIN_TARGET = 0.574
"""Optimal acceptance of adjusted Langevin in high dimension (Roberts & Rosenthal, 1998)."""

GROW, SHRINK = 1.5, 1 / 3
"""Transient step sizes, per chain: in balance at an acceptance of 0.73."""


class Engine:
    """Walks chains through warm-up and draws.

    Args:
        score: the law.
        method: proposal, curvature, correction.
        warmup_steps: how many steps adapt.
        target: the acceptance dual averaging seeks.
        step_size: a given h is kept, in the identity metric; None adapts both.
        frozen: average the curvature over warm-up and use that one from then on.
        dense_metric: whether the metric is a matrix or a diagonal.
        choose: whether warm-up may settle on Langevin in the metric, where that moves further.
        generator: the source of noise; None for torch's global one.

    Raises:
        ValueError: no step size, and no warm-up to find one in.
    """

    def __init__(
        self,
        score: Score,
        method: Method,
        *,
        warmup_steps: int,
        target: float,
        step_size: float | None = None,
        frozen: bool = False,
        dense_metric: bool = False,
        choose: bool = False,
        generator: torch.Generator | None = None,
    ):
        if warmup_steps == 0 and step_size is None:
            raise ValueError(
                "step_size must be given where warmup_steps is 0, but was None; warm-up is where "
                "it is found"
            )
        if warmup_steps == 0 and frozen:
            raise ValueError(
                "frozen must be False where warmup_steps is 0, but was True; the curvature is "
                "averaged over warm-up"
            )
        self.score, self.method, self.target = score, method, target
        self.plan = adaptation.schedule(warmup_steps)
        self.generator = generator
        self.adapting = step_size is None
        self.frozen, self.dense_metric = frozen, dense_metric
        self._rivals = (method.proposal, langevin) if choose else (method.proposal,)
        self.count, self._halvings, self._rival = 0, 0, 0
        self._last_window = (self.plan.windows or (self.plan.transient,))[-1]
        self._walked = Whitened(score)
        self._given = 1.0 if step_size is None else step_size
        self._averaging = adaptation.dual_averaging(self._given)
        self._state: State | None = None

    @property
    def warming_up(self) -> bool:
        """Whether the next step still adapts."""
        return self.count < self.plan.total

    @property
    def metric(self) -> Float[Tensor, "..."] | None:
        """L, the factor the chains walk in; None for the identity."""
        return self._walked.factor

    @property
    def position(self) -> Float[Tensor, "chains dim"]:
        """Where the chains are, (chains, D)."""
        return self._walked.to_x(self.state.position)

    @property
    def state(self) -> State:
        """The chains in the metric they walk in."""
        assert self._state is not None, "start() comes first"
        return self._state

    @property
    def step_size(self) -> float:
        """h, in the metric; in the transient the median over chains."""
        return float(self._step_size.median())

    def start(self, position: Float[Tensor, "chains dim"]) -> None:
        """Put the chains at `position`, keeping what was learned so far."""
        fresh = self._state is None
        self._state = transition.init(self._walked, self._walked.to_u(position), self.method)
        if fresh:
            self._step_size = position.new_full((len(position), 1), self._given)
            self._open_window()

    def refresh(self) -> None:
        """Look again from where the chains are, so that nothing but the positions carries on.

        A run that is taken up from `tensors` and `numbers` sees the very same.
        """
        self._state = transition.init(self._walked, self.state.position, self.method)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, by name; `refresh` comes first."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "walk": {"position": self.state.position, "step_size": self._step_size},
            "jumps": self._jumps.tensors,
            "covariance": self._covariance.tensors,
            "curvature": self._curvature.tensors,
        }
        found = {f"{part}.{name}": t for part, group in parts.items() for name, t in group.items()}
        if self.metric is not None:
            found["metric"] = self.metric
        if isinstance(self._walked.score, Frozen):
            curvature = self._walked.score.curvature
            diagonal = isinstance(curvature, Diagonal)
            found["frozen"] = curvature.diagonal() if diagonal else curvature.dense()
        if self.generator is not None:
            found["generator"] = self.generator.get_state()
        return found

    def numbers(self) -> dict[str, Any]:
        """The rest of what the next step depends on, as JSON would have it."""
        return {
            "count": self.count,
            "rival": self._rival,
            "halvings": self._halvings,
            "averaging": list(self._averaging),
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `numbers` gave, in an engine made the same way."""
        device = self.score.device
        score: Score = self.score
        if "frozen" in tensors:
            found = tensors["frozen"].to(device)
            score = Frozen(score, Diagonal(found) if found.ndim == 1 else Dense(found))
        metric = tensors.get("metric")
        self._walked = Whitened(score, None if metric is None else metric.to(device))
        if numbers["rival"]:
            self._settle(numbers["rival"])
        self.count, self._halvings = numbers["count"], numbers["halvings"]
        self._averaging = DualAveraging(*numbers["averaging"])
        self._step_size = tensors["walk.step_size"].to(device)
        position = tensors["walk.position"].to(device)
        self._state = transition.init(self._walked, position, self.method)
        self._open_window()
        kept = {"jumps": self._jumps, "covariance": self._covariance, "curvature": self._curvature}
        for part, record in kept.items():
            prefix = f"{part}."
            group = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            record.restore({name: t.to(device) for name, t in group.items()})
        if self.generator is not None:
            self.generator.set_state(tensors["generator"])

    def step(self) -> Info:
        """Walk every chain one step, adapting if still in warm-up."""
        transient = self.count < self.plan.transient
        x = self.state.position
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=self.generator)
        uniform = torch.rand(x.shape[:1], dtype=x.dtype, device=x.device, generator=self.generator)
        seeking = self.adapting and not transient and self.count < self._last_window
        trial = self._jumps.trial(self.count) if seeking else (0, 0)
        # an unadjusted draw only reports the ratio, and the trapezoid is free
        free = self.method.correction == "none" and not self.warming_up
        self._state, info = transition.step(
            self.state,
            self._walked,
            # every rival sees the same curvature, so that the next step can be the kernel's own
            self.method._replace(proposal=self._rivals[trial[0]]),
            self._step_size * 0.5 ** trial[1],
            noise,
            uniform,
            # the first steps of dual averaging are bold: uncorrected they threw chains to 1e18
            adjusted=self.method.correction != "none" or self.count < self.plan.settled,
            uphill=transient,
            rule="trapezoid" if free else "lobatto",
        )
        self.count += 1
        if self.count <= self.plan.total:
            self._adapt(info, transient, trial)
        return info

    def _adapt(self, info: Info, transient: bool, trial: tuple[int, int]) -> None:
        if transient:
            self._adapt_transient(info)
        elif self.adapting and self.count <= self.plan.settled:
            self._jumps.add(trial, info.jump)
            if trial == (0, 0):
                seen = float(info.acceptance.nan_to_num(0.0).mean())
                self._averaging = adaptation.update(self._averaging, seen, self.target)
            settled = self.count == self.plan.settled
            shorter = self._halvings * math.log(2) if settled else 0.0
            average = self._averaging.log_average if settled else self._averaging.log_step
            self._set_step(average - shorter)
        # the second half of the transient gives the first, rough metric
        if self.count > self.plan.transient // 2:
            self._covariance.add(self.position)
            if self.frozen and self.state.expansion.curvature is not None:
                self._curvature.add(self.state.expansion.curvature)
        if self.count == self.plan.transient or self.count in self.plan.windows:
            self._end_window()

    def _set_step(self, log_step: float) -> None:
        self._step_size = torch.full_like(self._step_size, log_step).exp()

    def _adapt_transient(self, info: Info) -> None:
        if not self.adapting:
            return
        rate = torch.where(info.accepted, GROW, SHRINK).unsqueeze(-1).to(self._step_size)
        self._step_size = (self._step_size * rate).clamp(max=1e6)

    def _end_window(self) -> None:
        """Change the metric to what the window saw, and begin the next one."""
        position, walked = self.position, self._walked
        score = walked.score
        last = self.count == self._last_window
        if self.frozen and last:
            score = Frozen(score, self._curvature.average(walked))
        factor = self._covariance.factor(position.dtype) if self.adapting else None
        self._walked = Whitened(score, walked.factor if factor is None else factor)
        if self.adapting:
            # in a metric of the law's own scale h is of order 1
            begin = self.step_size if factor is None else 1.0
            self._averaging = adaptation.dual_averaging(begin)
            self._step_size = torch.full_like(self._step_size, begin)
        if self.adapting and last and self.plan.windows:
            self._choose()
        self._open_window()
        self.start(position)

    def _choose(self) -> None:
        """Settle on the proposal and the fraction of its step that moved furthest."""
        rival, halvings = self._jumps.best()
        if rival == 0:
            self._halvings = halvings
            return
        self._settle(rival)

    def _settle(self, rival: int) -> None:
        """From now on walk by another proposal: Langevin in the metric, which pays no curvature."""
        self._rival = rival
        self._rivals = (self._rivals[rival],)
        self.method = self.method._replace(proposal=self._rivals[0], curvature=None)
        if self.method.correction != "none":
            self.target = LANGEVIN_TARGET

    def _open_window(self) -> None:
        self._jumps = JumpRecord(len(self._rivals))
        like = self.state.position
        self._covariance = PooledCovariance(self.score.dim, self.dense_metric, like)
        self._curvature = MeanCurvature()
