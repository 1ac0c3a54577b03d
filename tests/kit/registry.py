"""Every kernel, correction and curvature, so that one test puts each through the same paces.

A new kernel is one row here.
"""

from typing import NamedTuple

from ozaki import ScoreLangevinKernel, ScoreOzakiKernel


class Row(NamedTuple):
    kernel: type
    options: dict

    def build(self, model, **more):
        return self.kernel(model, **{**self.options, **more})

    def __repr__(self):
        words = [self.kernel.__name__.removeprefix("Score").removesuffix("Kernel")]
        return "-".join(words + [str(v) for v in self.options.values()])


KERNELS = [
    Row(ScoreLangevinKernel, {}),
    Row(ScoreOzakiKernel, {"curvature": "diagonal"}),
    Row(ScoreOzakiKernel, {"curvature": "dense"}),
    Row(ScoreOzakiKernel, {"curvature": "diagonal", "frozen": True}),
    Row(ScoreOzakiKernel, {"curvature": "dense", "frozen": True}),
]
