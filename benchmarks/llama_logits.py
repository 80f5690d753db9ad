"""Logits of a GGUF file for token ids, through llama-cpp-python's low-level bindings: a process of its own.

    python benchmarks/llama_logits.py PACKAGE LIBRARIES FILE.gguf OUTPUT.npy '{"threads": 2, ...}' < windows.json

stdin is a list of windows of token ids, each from an empty cache; the output has a row for each token of each window, in their order.
"""

import ctypes
import json
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Options:
    """How the model is run."""

    threads: int = 1
    half_cache: bool = False
    """The cache in float16, as that program has it where nothing is said; otherwise in float32, as ours is."""
    repack: bool = True
    """Whether weights may be put in another order at load."""


def bindings(package: Path, libraries: Path) -> Any:
    """The low-level module alone: the package itself would import more, of which nothing is needed here."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(libraries)
    shell = types.ModuleType("llama_cpp")
    shell.__path__ = [str(package)]
    # Also keeps out this folder's llama_cpp.py.
    sys.modules["llama_cpp"] = shell
    import llama_cpp.llama_cpp as low

    return low


def logits(low: Any, file: Path, windows: list[list[int]], options: Options, output: Path) -> None:
    quiet = low.llama_log_callback(lambda level, text, data: None)
    low.llama_log_set(quiet, ctypes.c_void_p(0))
    low.llama_backend_init()
    model = opened(low, file, options)
    context = context_of(low, model, max(map(len, windows)), options)
    vocab = low.llama_vocab_n_tokens(low.llama_model_get_vocab(model))
    rows = np.lib.format.open_memmap(output, "w+", np.float32, (sum(map(len, windows)), vocab))
    done = 0
    for window in windows:
        rows[done : done + len(window)] = window_logits(low, context, window, vocab)
        done += len(window)
    rows.flush()


def opened(low: Any, file: Path, options: Options) -> Any:
    asked = low.llama_model_default_params()
    asked.n_gpu_layers, asked.use_extra_bufts = 0, options.repack
    model = low.llama_model_load_from_file(str(file).encode(), asked)
    if not model:
        raise SystemExit(f"error: {file} cannot be loaded")
    return model


def context_of(low: Any, model: Any, tokens: int, options: Options) -> Any:
    asked = low.llama_context_default_params()
    asked.n_ctx, asked.n_batch, asked.n_ubatch = tokens, tokens, tokens
    asked.n_threads = asked.n_threads_batch = options.threads
    asked.flash_attn_type = low.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked.type_k = asked.type_v = low.GGML_TYPE_F16 if options.half_cache else low.GGML_TYPE_F32
    context = low.llama_init_from_model(model, asked)
    if not context:
        raise SystemExit("error: no context can be made")
    return context


def window_logits(low: Any, context: Any, window: list[int], vocab: int) -> np.ndarray:
    """*Shape:* ``(tokens, vocab)``"""
    low.llama_memory_clear(low.llama_get_memory(context), True)
    batch = low.llama_batch_init(len(window), 0, 1)
    try:
        batch.n_tokens = len(window)
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if code := low.llama_decode(context, batch):
            raise SystemExit(f"error: decoding {len(window)} tokens gave {code}")
        return np.ctypeslib.as_array(low.llama_get_logits(context), (len(window), vocab)).copy()
    finally:
        low.llama_batch_free(batch)


def main() -> None:
    package, libraries, file, output, options = sys.argv[1:]
    logits(bindings(Path(package), Path(libraries)), Path(file), json.load(sys.stdin), Options(**json.loads(options)), Path(output))


if __name__ == "__main__":
    main()
