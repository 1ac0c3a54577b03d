"""`UNet` is a U-Net for images, built on `UNet2DModel`.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
2015, with residual blocks as Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models",
NeurIPS 2020, have it. How trunks are called is told in `preconditioned`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, silu

from ozaki.foundation.lazy import lazy
from ozaki.foundation.shapes import Float
from ozaki.scores.learned.mlp import FACTOR_GAIN
from ozaki.scores.learned.trunk import Traits

diffusers = lazy("diffusers")

GROUPS = 8
WIDER = 4  # how many times as wide as the trunk's last features the heads of s2 and above are
TURN = 30.0  # radians of the embedding's highest frequency for a unit of ln σ / 4


class Preset(NamedTuple):
    """A size of U-Net.

    Attributes:
        widths: channels at each level, of the width of the first.
        layers: residual blocks at each level.
        width: channels of the first level.
        patch: side of the squares of pixels that the first level sees as one.
    """

    widths: tuple[int, ...]
    layers: int
    width: int
    patch: int


PRESETS = {
    "unet": Preset((1, 2, 4), 1, 32, 2),
    "unet_large": Preset((1, 2, 2, 4), 2, 64, 1),
}


class UNet(nn.Module):
    """One U-Net for images with heads for s1, the diagonals of s2 and above, and s2's factor.

    Levels of `width` times 1, 2, 4 channels ("unet") or 1, 2, 2, 4 ("unet_large"), each at half
    the size of the one before, with one residual block each or two; no attention, through which
    products with the Jacobian could not be differentiated again. The first level of "unet" sees
    squares of 2 × 2 pixels as one, which pays for twice the channels. It sees where they are as
    well: what lies in the middle of all images is not what lies at their border. Images whose sides
    are no multiple of the smallest level's are padded by their edges, and cropped after. Outputs
    begin as those of `ResidualMLP`.

    Args:
        channels: of an image.
        order, rank: as of `Heads`.
        preset: "unet" or "unet_large".
        width: channels of the first level, a multiple of 8; None is the preset's own.

    Raises:
        ValueError: no such preset, or a width that is not a multiple of 8.
        ImportError: diffusers is not installed.
    """

    traits: ClassVar = Traits(knows_orders=True)

    def __init__(
        self,
        channels: int,
        order: int = 2,
        rank: int = 0,
        preset: str = "unet",
        width: int | None = None,
    ):
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"network must be one of {sorted(PRESETS)}, but was {preset!r}")
        chosen = PRESETS[preset]
        self.architecture = {
            "channels": channels,
            "order": order,
            "rank": rank,
            "preset": preset,
            "width": width,
        }
        width = chosen.width if width is None else width
        if width % GROUPS or width < GROUPS:
            raise ValueError(f"width of a U-Net must be a multiple of {GROUPS}, but was {width}")
        levels = len(chosen.widths)
        try:
            model = diffusers.UNet2DModel
        except ImportError as error:
            raise ImportError(
                "network='unet' needs diffusers, which is not installed: pip install "
                "'ozaki[images]'"
            ) from error
        self.channels, self.rank = channels, rank
        self.patch = chosen.patch
        self.multiple = self.patch * 2 ** (levels - 1)
        inside = channels * self.patch**2  # the entries of a square of pixels
        self.trunk = model(
            in_channels=inside + 2,  # and their places
            out_channels=width,
            block_out_channels=tuple(width * w for w in chosen.widths),
            layers_per_block=chosen.layers,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=GROUPS,
            add_attention=False,
            resnet_time_scale_shift="scale_shift",
        )
        self.trunk.conv_out = nn.Identity()  # the heads read its features
        self.first = nn.Conv2d(width, inside, 3, padding=1)
        wide = WIDER * width
        self.inner = nn.Conv2d(width, wide, 3, padding=1) if order > 1 else None
        # of s2 the size bears on σ as directly as anything: the heads are told it once more
        self.level = None
        if order > 1:
            self.level = nn.Sequential(nn.Linear(1, wide), nn.SiLU(), nn.Linear(wide, 2 * wide))
            _silence(self.level[2])
        self.rest = nn.ModuleList(nn.Conv2d(wide, inside, 1) for _ in range(order - 1))
        for head in (self.first, *self.rest):
            _silence(head)
        self.factor = nn.Conv2d(wide, inside * rank, 1) if rank else None
        if self.factor is not None:
            nn.init.normal_(self.factor.weight, std=FACTOR_GAIN / rank**0.5)
            nn.init.zeros_(self.factor.bias)  # pyright: ignore

    def train_orders(self, first: bool, rest: bool) -> None:
        """Let s1 and the trunk, and the heads of s2 and above, take gradients or not."""
        self.requires_grad_(first)
        for head in (self.inner, self.level, self.rest, self.factor):
            if head is not None:
                head.requires_grad_(rest)

    def warm_start(self) -> None:
        """Leave the heads as they are: all orders share the trunk's features."""

    def factor_biases(self) -> Sequence[Tensor]:
        """None: the columns of the factor begin at random weights."""
        return ()

    def outputs(self, u: Tensor, noise: Tensor | None, orders: tuple[bool, bool]) -> Any:
        """The outputs of all orders, whichever are asked for."""
        return self(u, noise)

    def forward(self, u: Float[Tensor, "n *event"], noise: Float[Tensor, " n"]) -> Any:
        """Outputs for s1, and with `order` 2 and above for the other heads.

        Args:
            u: images, (n, C, H, W), or (n, H, W) of one channel.
            noise: ln σ / 4, (n,).

        Returns:
            One tensor of the shape of `u` where the order is 1; else a tuple of them, and with a
            rank the factor, (*u.shape, r), in the third place.
        """
        images = u if u.dim() == 4 else u.unsqueeze(1)
        height, width = images.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            images = pad(images, (0, right, 0, below), mode="replicate")
        squares = pixel_unshuffle(images, self.patch)
        squares = torch.cat([squares, _places(squares)], 1)
        h = silu(self.trunk(squares, TURN * noise, return_dict=False)[0])

        def pixels(values: Tensor) -> Tensor:
            return pixel_shuffle(values, self.patch)[..., :height, :width]

        first = pixels(self.first(h)).reshape(u.shape)
        if self.inner is None or self.level is None:
            return first
        scale, shift = self.level(4 * noise.unsqueeze(1))[..., None, None].chunk(2, 1)
        h = silu(self.inner(h) * (1 + scale) + shift)
        outputs = [first, *(pixels(head(h)).reshape(u.shape) for head in self.rest)]
        if self.factor is not None:
            # pixel_shuffle would mix the columns with the pixels of a square
            columns = self.factor(h).unflatten(1, (self.rank, -1)).flatten(0, 1)
            factor = pixels(columns).reshape(len(u), self.rank, *u.shape[1:])
            outputs.insert(2, factor.movedim(1, -1))
        return tuple(outputs)


def _silence(layer: nn.Module) -> None:
    """Set a layer's weights so that its outputs begin at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _places(like: Tensor) -> Tensor:
    """Return row and column of each place, from −1 to 1, (n, 2, H, W)."""
    ends = [torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in like.shape[2:]]
    return torch.stack(torch.meshgrid(*ends, indexing="ij")).expand(len(like), -1, -1, -1)


def channels_of(event_shape: torch.Size) -> int:
    """Return C for images of shape (C, H, W) or (H, W).

    Raises:
        ValueError: points of another shape.
    """
    if len(event_shape) == 3:
        return event_shape[0]
    if len(event_shape) == 2:
        return 1
    raise ValueError(
        f"network='unet' needs images, data of shape (N, C, H, W) or (N, H, W), but points had "
        f"shape {tuple(event_shape)}; reshape the data, or leave network out"
    )
