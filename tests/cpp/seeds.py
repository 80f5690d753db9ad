"""``python seeds.py FOLDER``: what the fuzzers of the C++ readers begin with, made from engines of a tiny model and from small tokenizers."""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny  # noqa: E402  (beside this folder)

PLANS = ((1, 1), (2, 1), (1, 2))
"""Tensor ranks and pipeline stages."""
TEXT = ["The nice thing about computers is that they count: 1, 12, 123.\n", "naïve café 深度求索 👩‍👧 'tis <think>so</think>\n"]


def sets(folder: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The manifests of each set's ranks, and the record of their joined graph where there is one."""
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    config = tiny.tiny_config("v3", num_hidden_layers=2, first_k_dense_replace=1)
    checkpoint = tiny.write_checkpoint(folder / "model", config)
    for tensor, pipeline in PLANS:
        made = folder / f"tensor-{tensor}-pipeline-{pipeline}"
        export_model(ExportRequest(checkpoint, made / "graphs", Plan(tensor, pipeline)))
        build_engines(EngineRequest(made / "graphs", "ort", made / "ort"))
        yield made.name, [path.read_bytes() for path in (*sorted(made.glob("ort/rank-*/manifest.json")), *made.glob("ort/joined.json"))]


def tokenizers() -> Iterator[tuple[str, str]]:
    """A tokenizer.json with each of the parts that DeepSeek's have, and one that lacks most bytes."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), pre_tokenizers.Digits(individual_digits=True)]
    begin = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    for name, processor in (("byte-level", processors.ByteLevel()), ("template", processors.Sequence([processors.ByteLevel(), begin]))):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer, tokenizer.decoder = normalizers.Sequence([]), decoders.ByteLevel()
        tokenizer.pre_tokenizer, tokenizer.post_processor = pre_tokenizers.Sequence([*splits, last]), processor
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False)
        tokenizer.train_from_iterator(TEXT * 20, trainer)
        tokenizer.add_tokens([AddedToken("<think>", normalized=True), AddedToken("k> t", normalized=False)])
        yield name, tokenizer.to_str()
    small = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "Ġ": 4, "ab": 5, "Ġab": 6}, [("a", "b"), ("Ġ", "ab")]))
    small.pre_tokenizer, small.decoder, small.post_processor = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), begin
    small.add_special_tokens(["<s>", "</s>"])
    yield "small", small.to_str()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def lean(record: bytes) -> bytes:
    """Without what the C++ runtime does not look into, and with short hashes: a fuzzer of whole sets should not look there either."""
    data = json.loads(re.sub(rb"[0-9a-f]{60}([0-9a-f]{4})\b", rb"\1", record))
    known = {"config": ("vocab", "bos", "eos"), "source": ("fingerprint",), "shard": (), "lowerings": (), "refusals": (), "tools": ()}
    for field in data.keys() & known:
        data[field] = {name: value for name, value in data[field].items() if name in known[field]} if isinstance(data[field], dict) else []
    return compact(json.dumps(data))


def compact(record: str | bytes) -> bytes:
    return json.dumps(json.loads(record), separators=(",", ":")).encode()


def main(target: Path) -> None:
    """All seeds or none, a folder for each reader; nothing where they are there already."""
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        seeds = Path(folder) / "seeds"
        for name, found in sets(Path(folder)):
            write(seeds / "manifest" / name, compact(found[0]))
            records = [lean(record) for record in found]
            for reader in ("joined", "chain"):
                # The last text is that of the joined graph, empty where there is none.
                write(seeds / reader / name, b"\0".join(records if len(records) > 1 else [*records, b""]))
        for name, text in tokenizers():
            write(seeds / "tokenizer" / name, compact(text))
        seeds.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
