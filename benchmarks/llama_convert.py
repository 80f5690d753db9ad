"""llama.cpp's own converter and reader, for a checkpoint without a tokenizer: a process of its own, beside that program's sources.

    python benchmarks/llama_convert.py convert SOURCE MODEL FILE.gguf
    python benchmarks/llama_convert.py tensors SOURCE FILE.gguf
"""

import json
import runpy
import sys
from pathlib import Path


def convert(source: Path, model: Path, output: str) -> None:
    """Run the converter with the vocabulary left out, as that program allows: prompts are token ids here."""
    import conversion

    kind = conversion.get_model_class(json.loads((model / "config.json").read_text())["architectures"][0])
    kind.set_vocab = kind._set_vocab_none
    sys.argv = ["convert_hf_to_gguf.py", str(model), "--outfile", output, "--outtype", "bf16"]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


def tensors(path: str) -> None:
    """Print every tensor as JSON: its name, type, bytes, elements and outermost dimension."""
    import gguf

    found = [(tensor, tensor.tensor_type.name) for tensor in gguf.GGUFReader(path).tensors]
    sizes = [{"bytes": int(tensor.n_bytes), "elements": int(tensor.n_elements), "outermost": int(tensor.shape[-1])} for tensor, _ in found]
    print(json.dumps([{"name": tensor.name, "kind": kind} | size for (tensor, kind), size in zip(found, sizes, strict=True)]))


def main() -> None:
    what, source, *rest = sys.argv[1:]
    sys.path[:0] = [source, str(Path(source) / "gguf-py")]
    if what == "convert":
        convert(Path(source), Path(rest[0]), rest[1])
    else:
        tensors(rest[0])


if __name__ == "__main__":
    main()
