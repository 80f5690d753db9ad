"""Engine backends by name. Looking one up needs nothing installed; loading one explains what is missing."""

import logging

from exporter.errors import UsageError

from .contract import Backend
from .ort import ORT, ORT_CUDA
from .tensorrt import TENSORRT, TENSORRT_RTX

log = logging.getLogger(__name__)
BACKENDS: dict[str, Backend] = {backend.capabilities.backend: backend for backend in (ORT, ORT_CUDA, TENSORRT, TENSORRT_RTX)}


def find_backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}.", hint=f"Known are {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def load_backend(name: str) -> Backend:
    """The backend, its libraries imported.

    :raises BuildError: a library cannot be imported; the message says what to install.
    """
    backend = find_backend(name)
    log.info("backend %s: %s", name, ", ".join(f"{library} {version}" for library, version in backend.tools().items()))
    return backend
