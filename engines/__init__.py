"""Graphs become engines, engines become tokens.

    from engines import Request, load

    with load("build/ort") as chain:
        chain.generate([0, 17, 42], max_tokens=16)
        for completion in chain.generate_many([Request([0, 17, 42]), Request([0, 5], max_tokens=8)]):
            print(completion.index, completion.tokens)
"""

from .runtime.loading import load
from .runtime.serving import Completion, Request

__all__ = ["Completion", "Request", "load"]
