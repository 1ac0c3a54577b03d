"""`Contest` ranks choices by how far their steps move the slowest coordinate, for what they cost.

The jumps that chains made are what counts, in the coordinates of the law, each in units of its own
spread: of x, and of x², which turns and reflections leave behind. A stationary chain whose mean
squared jump is J of twice the variance has an autocorrelation of 1 − J from one draw to the next,
and (J/(2 − J)) effective draws a draw if it forgets at that rate.

Between modes it forgets at another: single steps that are at home in their own mode at once, and
leave it never, have a jump as large as that of trajectories which leave it every tenth time. So
jumps are also measured over several steps, as many as cost `BUDGET` gradients; of ρᵏ = 1 − J over k
steps ρ is the slower rate. What both promise is averaged on a log scale: where the longer jump is
small both count alike, and where it is as large as can be, the single steps alone. A look of a
dozen gradients does not see who leaves a mode in a hundred: against trajectories a step without
momentum has to be well ahead.

Source: Pasarica & Gelman, "Adaptively scaling the Metropolis algorithm using expected squared
jumped distance" (2010).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.warmup.tracks import Choice, Track

CLIP = 3.0  # spreads from the middle, beyond which a lone chain's excursion counts no more
LONGER = 0.85  # the longest trajectories that earn this share of the best are taken
AHEAD = 2.0  # a step that shares no momentum is taken if it earns so much more than trajectories
SHORTER = 1.1  # a halved step must move clearly further: near the best the jump is flat
BUDGET = 12.0  # gradients of a longer look
LEAST = 20  # longer jumps that are needed of every choice
MOST = 0.95  # share of twice the variance; beyond it an estimate of few jumps says nothing


class Contest:
    """How far each choice has moved the chains.

    Args:
        tracks: all of them.
        running: what competes, in the order in which they take turns.
        middle: of each coordinate, (D,).
        spread: likewise.
    """

    def __init__(
        self,
        tracks: tuple[Track, ...],
        running: Sequence[Choice],
        middle: Float[Tensor, "dim"],
        spread: Float[Tensor, "dim"],
    ):
        self._tracks, self.running = tracks, list(running)
        self._middle, self._spread = middle.double(), spread.double()
        dim = len(middle)
        # over one step, and over several
        self._jumps = self._middle.new_zeros(2, len(self.running), 2, dim)
        self._powers = self._middle.new_zeros(4, dim)  # sums of z, z², z⁴ and 1
        # jumps and gradients of one step; jumps and steps of several
        self._count = torch.zeros(2, len(self.running), 2, dtype=torch.float64)

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """The middle and the spread of each coordinate, (D,) each."""
        return self._middle, self._spread

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums so far."""
        return {"jumps": self._jumps, "powers": self._powers, "count": self._count}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Resume from what `tensors` gave."""
        self._jumps, self._powers = tensors["jumps"], tensors["powers"]
        self._count = tensors["count"].cpu()

    def add(
        self,
        tried: Sequence[Choice | None],
        lengths: Sequence[int],
        path: Float[Tensor, "steps chains dim"],
    ) -> None:
        """Fold in the steps of all chains.

        Args:
            tried: what each step was; None for one that is not judged.
            lengths: how many steps each trajectory had.
            path: where the chains were before the first step and after each, in the coordinates
                of the law.
        """
        known = [step for step, choice in enumerate(tried) if choice is not None]
        if not known:
            return
        z = ((path.double() - self._middle) / self._spread).clamp(-CLIP, CLIP)
        square = z.square()
        moves = torch.stack([z.diff(dim=0).square(), square.diff(dim=0).square()], 1).sum(2)
        places = [self.running.index(tried[step]) for step in known]  # pyright: ignore
        index = torch.tensor(places)
        self._jumps[0].index_add_(0, index.to(path.device), moves[known])
        after = z[1:].flatten(0, 1), square[1:].flatten(0, 1)
        total = torch.full_like(self._middle, len(after[0]))
        self._powers += torch.stack(
            [after[0].sum(0), after[1].sum(0), after[1].square().sum(0), total]
        )
        chains = path.shape[1]
        costs = [[chains, lengths[step] * chains] for step in known]
        self._count[0].index_add_(0, index, torch.tensor(costs, dtype=torch.float64))
        if len(set(places)) == 1:
            self._look_further(places[0], lengths, z, square)

    def _look_further(self, place: int, lengths: Sequence[int], z: Tensor, square: Tensor) -> None:
        """Fold in the jumps over several steps of a turn, in which all are of one choice."""
        cost = self._tracks[self.running[place].track].cost * sum(lengths) / len(lengths)
        several = min(len(lengths), max(1, round(BUDGET / cost)))
        count = len(z) - several
        jumps = [(part[several:] - part[:-several]).square().sum((0, 1)) for part in (z, square)]
        self._jumps[1, place] += torch.stack(jumps)
        number = count * z.shape[1]
        self._count[1, place] += torch.tensor([number, number * several], dtype=torch.float64)

    def scores(self) -> dict[Choice, float]:
        """Effective draws of the slowest coordinate a gradient, by choice."""
        first, second, fourth, total = self._powers.cpu()
        total = total.clamp(min=1)
        variances = torch.stack(
            [
                second / total - (first / total).square(),
                fourth / total - (second / total).square(),
            ]
        ).clamp(min=1e-12)
        known = bool((self._count[1, :, 0] >= LEAST).all())
        found = {}
        for place, choice in enumerate(self.running):
            (jumps, gradients), (longer, steps) = self._count[:, place].tolist()
            cost = self._tracks[choice.track].cost * max(gradients / max(jumps, 1.0), 1.0)
            near, far = (
                min(float((jump[place].cpu() / (2 * variances * max(n, 1.0))).min()), MOST)
                for jump, n in zip(self._jumps, (jumps, longer), strict=True)
            )
            promised = near / (2 - near)
            if known:
                kept = (1 - far) ** (longer / steps)
                weight = (1 - far / MOST) / 2
                promised = promised ** (1 - weight) * ((1 - kept) / (1 + kept)) ** weight
            found[choice] = promised / cost
        return found

    def best(self) -> Choice:
        """The choice that earns most; of nearly equal ones the longest trajectories."""
        scores = self.scores()

        def earned(choice: Choice) -> float:
            moves = self._tracks[choice.track].times[-1] > 0
            return scores[choice] * (AHEAD if moves else 1.0)

        winner = max(scores, key=earned)
        near = [
            c
            for c, score in scores.items()
            if c.track == winner.track and score >= LONGER * scores[winner]
        ]
        if self._tracks[winner.track].spec.momentum:
            return max(near, key=lambda c: c.time)
        whole = winner._replace(halvings=0)
        return winner if scores[winner] > SHORTER * scores.get(whole, 0.0) else whole
