"""Whether code is run to be written down, not for its values."""

from torch.fx.experimental.proxy_tensor import get_proxy_mode


def tracing() -> bool:
    """Whether `make_fx` is looking: then no branch may depend on a value."""
    return get_proxy_mode() is not None
