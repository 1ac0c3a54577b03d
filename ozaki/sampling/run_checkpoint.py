"""`RunCheckpoint` writes a run to a folder, so that the run can be resumed where it stopped."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ozaki.io import checkpoint
from ozaki.kernels.engine import Engine
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.sampling.draws import Draws

FILE = "chains.safetensors"


class RunCheckpoint:
    """A folder in which a run is kept, block by block, so that it can be resumed.

    `chains.safetensors` is the state after some step, and `draws-N.safetensors` the draws from the
    N-th on that were made up to it. Each says of which run it is, and is written whole before the
    state that counts it. Draws that are streamed elsewhere are not written here: the state says how
    many of them count.

    Args:
        folder: made if it is missing.
        every: steps from one writing to the next.
        settings: what bears on the draws; a run with others is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int, settings: Mapping[str, Any]):
        self.folder, self.every, self.settings = Path(folder), every, dict(settings)
        self._run = uuid.uuid4().hex
        self._blocks: list[int] = []  # the first draw of each
        self._written = 0

    def save(self, step: int, kernel: ScoreKernel, draws: Draws) -> None:
        """Write where the chains are after `step` steps, and the draws made since the last time."""
        # from here on the run sees what a run resumed from here would see
        kernel.engine.refresh()
        streamed = draws.sync()
        kernel.team.on_first(lambda: self._write(step, kernel.engine, draws, streamed))

    def _write(
        self, step: int, engine: Engine, draws: Draws, streamed: dict[str, Any] | None
    ) -> None:
        """Write the new draws first, and then the state that counts them."""
        first, blocks = self._written, self._blocks
        if streamed is None and draws.count > first:
            of = {"run": self._run}
            checkpoint.write(self.folder, draws.tensors(first), {}, of, _name(first))
            blocks = [*blocks, first]
        numbers = {
            "step": step,
            "run": self._run,
            "blocks": blocks,
            "streamed": streamed,
            "engine": engine.numbers(),
        }
        tensors = {**engine.tensors(), **draws.pending()}
        checkpoint.write(self.folder, tensors, self.settings, numbers, FILE)
        self._blocks, self._written = blocks, draws.count

    def restore(self, kernel: ScoreKernel, draws: Draws) -> int | None:
        """Resume the run that is kept here, under its lock.

        Returns:
            The step that it is at; None where there is no run.

        Raises:
            ValueError: a file that is corrupt, or a run with other settings.
        """
        team = kernel.team
        team.on_first(self._clean)
        step = self._read(kernel, draws)
        team.require_equal(
            {"the checkpoint": "empty" if step is None else step},
            "keep the checkpoint's folder on a disk that all of them share",
        )
        return step

    def _clean(self) -> None:
        checkpoint.clean(self.folder, FILE)
        for stale in self.folder.glob(".draws-*.safetensors.*"):
            checkpoint.clean(self.folder, stale.stem.removeprefix("."))

    def _read(self, kernel: ScoreKernel, draws: Draws) -> int | None:
        """Read the files of draws in their order, and check that they follow one another."""
        found = checkpoint.read(self.folder, FILE)
        if found is None:
            return None
        tensors, settings, numbers = found
        if "trajectory" not in settings:
            raise ValueError(
                f"{self.folder} must hold a run that this version began, but holds one of version "
                "0.1, whose warm-up knew no trajectories; end it with that version, or choose "
                "another folder"
            )
        checkpoint.match(self.folder, settings, self.settings, FILE)
        if numbers["streamed"] is not None:
            draws.find(numbers["streamed"])
        for first in numbers["blocks"]:
            block = checkpoint.read(self.folder, _name(first))
            if block is None or block[2].get("run") != numbers["run"]:
                raise ValueError(
                    f"{self.folder / _name(first)} must hold draws of the run in {FILE}, but "
                    f"{'is missing' if block is None else 'they are of another run'}; restore it "
                    "from a copy, or choose another folder"
                )
            draws.fill(first, block[0])
        draws.resume({k: t for k, t in tensors.items() if k.startswith("seen.")})
        kernel.restore(tensors, numbers["engine"])
        self._run = numbers["run"]
        self._blocks, self._written = numbers["blocks"], draws.count
        return int(numbers["step"])


def _name(first: int) -> str:
    return f"draws-{first}.safetensors"
