"""`evaluate` measures how well learned scores fit clean points that they have not seen."""

import torch
from torch import Tensor

from ozaki.linalg import SymmetricOperator
from ozaki.scores.learned import objectives
from ozaki.scores.learned.preconditioned import BLOCK, ScoreNetwork


def evaluate(
    network: ScoreNetwork, u: Tensor, generator: torch.Generator | None, draws: int
) -> dict[str, float | list[float]]:
    """Compute the figures of `ScoreEstimator.evaluate`.

    Args:
        network: of one σ.
        u: clean points in the network's units, (N, D).
        generator: of the noise.
        draws: the number of noisy pairs, at least.
    """
    sigma = network.sigma
    assert isinstance(sigma, float)

    def pair(points: Tensor) -> tuple[Tensor, SymmetricOperator]:
        out = network(points)
        return out.s1, out.s2

    u = u.repeat(-(-draws // len(u)), 1)
    where = u.device if generator is None else generator.device
    z = torch.randn(u.shape, generator=generator, device=where, dtype=u.dtype).to(u.device)
    totals: dict[str, list[Tensor]] = {"dsm": [], "residual_vr": []}
    outputs: list[tuple[Tensor, Tensor]] = []
    rows = max(1, BLOCK // u.shape[1])  # the number at once bounds the memory of a large network
    for x, noise in zip(u.split(rows), z.split(rows), strict=True):
        if network.heads.order == 1:
            first = objectives.dsm_antithetic(network.first, x, noise, sigma)
            totals["dsm"].append(first)
            continue
        first, second = objectives.joint("residual", pair, x, noise, sigma)
        totals["dsm"].append(first)
        totals["residual_vr"].append(second)
        s1, s2 = pair(x + sigma * noise)
        outputs.append((s1, s2.diagonal()))
    figures: dict[str, float | list[float]] = {
        name: float(torch.cat(values).double().mean()) for name, values in totals.items() if values
    }
    if outputs:
        s1, s2 = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        ratios = objectives.calibration(s1, s2, z, sigma).double()
        figures["calibration"] = ratios.tolist()
        figures["calibration_mean"] = float(ratios.mean())
    return figures
