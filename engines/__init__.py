"""Graphs become engines, engines become tokens.

    from engines import load

    with load("build/ort") as chain:
        chain.generate([0, 17, 42], max_tokens=16)
"""

from .runtime.loading import load

__all__ = ["load"]
