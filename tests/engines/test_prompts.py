"""Prompt files: what each form of line becomes, conversations as transformers writes them, refusals that name the line."""

import json
import shutil
from pathlib import Path

import pytest

from engines.prompts import read_prompts
from engines.runtime.text import Text, render_chat
from exporter.errors import RunError, UsageError

TINY = Path(__file__).parents[2] / "examples/tiny-v3"
TEMPLATE = """{{ bos_token }}
{%- set seen = namespace(system=false) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set seen.system = true %}{{ message.content }}{% continue %}{% endif %}
    {%- if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
    {%- if message.role == 'user' %}<user>{{ message['content'] | trim }}{% else %}<assistant>{{ message.content }}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
USER, ASSISTANT = {"role": "user", "content": " What is   a <tuple>? "}, {"role": "assistant", "content": 'A "frozen" list.\n'}
CONVERSATIONS = ([USER], [{"role": "system", "content": "Be brief."}, USER, ASSISTANT], [USER, ASSISTANT, USER])


@pytest.fixture
def folder(tmp_path):
    """``folder(**config)``: the sample model's tokenizer, with these entries in tokenizer_config.json."""

    def make(**config):
        made = tmp_path / "tokenizer"
        made.mkdir()
        shutil.copy(TINY / "tokenizer.json", made)
        there = json.loads((TINY / "tokenizer_config.json").read_text())
        (made / "tokenizer_config.json").write_text(json.dumps(there | config))
        return made

    return make


def read(path, folder, *lines):
    path.write_text("".join(json.dumps(line) + "\n" if isinstance(line, dict) else f"{line}\n" for line in lines))
    return read_prompts(path, lambda: Text(folder, 0))


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["user", "system first", "three turns"])
def test_conversations_are_those_of_transformers(folder, tmp_path, messages):
    from transformers import AutoTokenizer

    there = folder(chat_template=TEMPLATE)
    reference = AutoTokenizer.from_pretrained(there)
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant")
    wanted = reference(text, add_special_tokens=False).input_ids
    assert read(tmp_path / "p.jsonl", there, {"messages": messages}) == [wanted]
    assert wanted.count(0) == 1, "one bos, the template's"


RICH = """{{ bos_token }}{% if tools is not none %}tools: {{ tools }}{% endif %}
{%- for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content | tojson(ensure_ascii=False) }}{% endgeneration %}
{%- else %}{{ {'é': message.content} | tojson(indent=1, separators=(',', ':'), sort_keys=True) }}{{ strftime_now('%Y') }}{% endif %}{% endfor %}"""


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["user", "system first", "three turns"])
def test_what_transformers_gives_templates_is_there(folder, tmp_path, messages):
    from transformers import AutoTokenizer

    there = folder(chat_template=RICH)
    text = AutoTokenizer.from_pretrained(there).apply_chat_template(messages, tokenize=False)
    assert render_chat(there, messages, False) == text
    assert "é" in text and "tools" not in text


def test_a_template_may_lie_in_a_file_or_among_others_or_with_tokens_as_objects(folder, tmp_path):
    there, line = folder(chat_template=TEMPLATE), {"messages": [USER]}
    wanted = read(tmp_path / "p.jsonl", there, line)
    config = json.loads((there / "tokenizer_config.json").read_text())
    bos = {"content": config["bos_token"], "lstrip": False}
    for changed in ({"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": TEMPLATE}]}, {"bos_token": bos}):
        (there / "tokenizer_config.json").write_text(json.dumps(config | changed))
        assert read(tmp_path / "p.jsonl", there, line) == wanted
    (there / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "another"}))
    (there / "chat_template.jinja").write_text(TEMPLATE)
    assert read(tmp_path / "p.jsonl", there, line) == wanted


def test_text_and_ids_need_no_template(folder, tmp_path):
    there = folder()
    text = Text(there, 0)
    assert read(tmp_path / "p.jsonl", there, {"text": "def f():"}, "", {"token_ids": [5, 9]}) == [text.encode("def f():"), [5, 9]]
    assert read(tmp_path / "p.txt", there, "one", "  ", "two") == [text.encode("one"), text.encode("two")]


def test_the_tokenizer_is_opened_once_and_only_for_text(tmp_path):
    opened = []

    class Counted(Text):
        def __init__(self):
            opened.append(1)
            super().__init__(TINY, 0)

    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1]}\n')
    read_prompts(tmp_path / "ids.jsonl", Counted)
    assert not opened
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    read_prompts(tmp_path / "text.txt", Counted)
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("line", "error", "what"),
    [
        ({"messages": []}, UsageError, "p.jsonl:2 has `messages` that are no list of objects"),
        ({"messages": "hi"}, UsageError, "p.jsonl:2 has `messages` that are no list"),
        ({"messages": [{"content": "hi"}]}, UsageError, "`role` and `content`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, RunError, "p.jsonl:2: the chat template of .* refuses the messages: no tools here"),
        ({"token_ids": [1, True]}, UsageError, "neither `text`, `messages`, nor a list of whole numbers"),
        ([1], UsageError, "neither `text`"),
        ("not json", UsageError, "p.jsonl:2 is not valid JSON"),
    ],
)
def test_refusals_name_the_line(folder, tmp_path, line, error, what):
    with pytest.raises(error, match=what):
        read(tmp_path / "p.jsonl", folder(chat_template=TEMPLATE), {"text": "good"}, json.dumps(line) if isinstance(line, list) else line)


def test_messages_without_a_template_are_refused_with_what_would_work(folder, tmp_path):
    with pytest.raises(RunError, match="p.jsonl:1: .*has no chat template") as refusal:
        read(tmp_path / "p.jsonl", folder(), {"messages": [USER]})
    assert "`text`" in refusal.value.hint


def test_templates_run_in_a_sandbox(folder, tmp_path):
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RunError, match="refuses the messages"):
        read(tmp_path / "p.jsonl", folder(chat_template=escape), {"messages": [USER]})


def test_the_files_of_the_tokenizer_travel_with_graphs_and_engines(moetrt, tmp_path, checkpoint):
    model = Path(shutil.copytree(checkpoint("v3"), tmp_path / "model"))
    for name, text in (("tokenizer.json", "{}"), ("tokenizer_config.json", "{}"), ("chat_template.jinja", "x")):
        (model / name).write_text(text)
    assert moetrt("export", model, "--output", tmp_path / "graphs").code == 0
    assert moetrt("build", tmp_path / "graphs", "--output", tmp_path / "ort").code == 0
    for folder in ("graphs", "ort"):
        assert (tmp_path / folder / "chat_template.jinja").read_text() == "x"
        assert moetrt("inspect", tmp_path / folder, "--verify").code == 0
        (tmp_path / folder / "chat_template.jinja").write_text("y")
        assert moetrt("inspect", tmp_path / folder, "--verify").code == 1
