"""`tracing` says whether code is being traced, rather than run for its values."""

from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ozaki.foundation.recording import recording


def tracing() -> bool:
    """Say whether `make_fx` or `record` is tracing: then no branch may depend on a value."""
    return recording() or get_proxy_mode() is not None
