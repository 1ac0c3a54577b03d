"""`tracing` says whether code is being traced to a graph, rather than run for its values."""

from torch.fx.experimental.proxy_tensor import get_proxy_mode


def tracing() -> bool:
    """Say whether `make_fx` is tracing: then no branch may depend on a value."""
    return get_proxy_mode() is not None
