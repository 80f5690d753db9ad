"""What is read beside config.json: the ends of text, whether a token goes before it, and types of model that are V3's under another name."""

import json
from pathlib import Path

import pytest
import tiny

from exporter.errors import ConfigError
from exporter.models import read_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config("v3", bos_token_id=0, eos_token_id=1)))
    return tmp_path


@pytest.mark.parametrize(("more", "wanted"), [({"eos_token_id": 16}, (1, 16)), ({"eos_token_id": [16, 1, 7]}, (1, 16, 7)), ({"eos_token_id": None}, (1,)), ({}, (1,))])
def test_text_also_ends_where_generation_config_says(folder: Path, more: dict, wanted: tuple[int, ...]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(more))
    assert read_model(folder).config.eos == wanted


@pytest.mark.parametrize(
    ("tokenizer", "wanted"),
    [
        (None, 0), ({}, 0), ({"tokenizer_class": "LlamaTokenizerFast"}, 0), ({"tokenizer_class": "TikTokenTokenizer"}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, 0), ({"add_bos_token": True, "tokenizer_class": "TikTokenTokenizer"}, 0),
        ({"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}, 0), ({"add_bos_token": False, "tokenizer_class": "LlamaTokenizerFast"}, None),
    ],
)  # fmt: skip
def test_a_token_goes_before_text_where_the_tokenizer_puts_one(folder: Path, tokenizer: dict | None, wanted: int | None) -> None:
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert read_model(folder).config.bos == wanted


@pytest.mark.parametrize(("text", "message"), [("{", "generation_config.json is not valid JSON"), ('{"eos_token_id": "end"}', "generation_config.json: eos_token_id is 'end'")])
def test_a_broken_file_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_model(folder)


def test_kimi_k2_is_v3_under_another_name(folder: Path) -> None:
    theirs = read_model(folder).config
    (folder / "config.json").write_text(json.dumps(tiny.tiny_config("v3", model_type="kimi_k2", bos_token_id=0, eos_token_id=1)))
    assert read_model(folder).config == theirs
    assert theirs.family == "deepseek_v3" and theirs.routing.scoring == "sigmoid"
