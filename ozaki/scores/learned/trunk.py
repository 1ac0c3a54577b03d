"""`Trunk` is the protocol of a network inside a `ScoreNetwork`, beyond being called.

A trunk is the network inside a `ScoreNetwork`; `preconditioned` says how it is called. ozaki's own
trunks, `Trunks` and `UNet`, have the methods of the protocol `Trunk`. A user's own module needs
none of them: `as_trunk` answers for it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Traits(NamedTuple):
    """The traits of a trunk that are known before a call; defaults are those of a user's module.

    Attributes:
        knows_orders: whether `Trunk.train_orders` tells the parameters of s1 from the others.
        separates_orders: whether s1 can be trained without s2, in a phase of its own. A trunk that
            knows its orders and cannot separate them learns all at once, and then the heads of s2
            once more.
        inherits_features: whether s2 begins its own phase with the features that s1 has learned.
        reads_noise: whether the noise level must be passed, even where there is only one.
        lightweight: whether many points at once cost little time and memory.
        known_shapes: whether the outputs have the right shapes by construction, so that no call is
            needed to check them.
    """

    knows_orders: bool = False
    separates_orders: bool = False
    inherits_features: bool = False
    reads_noise: bool = True
    lightweight: bool = False
    known_shapes: bool = False


@runtime_checkable
class Trunk(Protocol):
    """A network that tells its traits, and can be prepared for phases of training."""

    @property
    def traits(self) -> Traits:
        """The traits that are known before a call."""
        ...

    @property
    def architecture(self) -> dict[str, Any] | None:
        """The arguments it is built with, as JSON has them; None where they are not known."""
        ...

    def outputs(self, u: Tensor, noise: Tensor | None, orders: tuple[bool, bool]) -> Any:
        """Return the trunk's outputs; those of an order that is not asked for may be None."""
        ...

    def train_orders(self, first: bool, rest: bool) -> None:
        """Let s1, and s2 and above, take gradients or not."""
        ...

    def warm_start(self) -> None:
        """Let s2 and above begin with the features that s1 has learned."""
        ...

    def factor_biases(self) -> Sequence[Tensor]:
        """The biases that the columns of s2's factor begin at, each a view of shape (D, r)."""
        ...


class OwnModule:
    """A user's module as a trunk; only how to call it is known."""

    traits = Traits()
    architecture = None

    def __init__(self, module: nn.Module):
        self._module = module

    def outputs(self, u: Tensor, noise: Tensor | None, orders: tuple[bool, bool]) -> Any:
        """Return the module's outputs, of all orders."""
        return self._module(u, noise)

    def train_orders(self, first: bool, rest: bool) -> None:
        """Leave the module as it is: which parameters belong to s1 is not known."""

    def warm_start(self) -> None:
        """Leave the module as it is."""

    def factor_biases(self) -> Sequence[Tensor]:
        """Return an empty tuple, since no biases are known."""
        return ()


def as_trunk(network: nn.Module) -> Trunk:
    """Return the network itself if it is a `Trunk`, else an `OwnModule` around it."""
    return network if isinstance(network, Trunk) else OwnModule(network)
