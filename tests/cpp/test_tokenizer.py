"""Text in C++ against Hugging Face's tokenizers: the same ids of the same text, the same text of the same ids, and never other ones quietly."""

import ctypes
import json
import random
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
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

from engines import load
from engines.runtime.text import Streamer, Text
from exporter.errors import MoetrtError

ROOT = Path(__file__).parents[2]
PROGRAM, SANITIZED = ROOT / "build/cpp/moetrt-run", ROOT / "build/cpp-sanitized/moetrt-run"
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
FETCHED = ROOT / "build/cpp-headers/lib/libonig.so.5"
ONIGURUMA = str(FETCHED) if FETCHED.is_file() else "libonig.so.5"
TINY = ROOT / "examples/tiny-v3"
SPECIALS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]

pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="the C++ runtime is not built (make cpp)")

V3_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
V2_SPLITS = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"]
SCRIPTS = "深度求索人工智能基础技术研究 深度学习模型 こんにちは世界 カタカナ naïve café Ελληνικά русский язык हिन्दी العربية 한국어 1234567890 ½ ٣٤٥ 👩‍👩‍👧 \n"


def learned(pre_tokenizer, post_processor):
    """A byte-level tokenizer with what DeepSeek's have, trained on the sample's held-out text and a line of many scripts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizers.Sequence([]), decoders.ByteLevel()
    tokenizer.pre_tokenizer, tokenizer.post_processor = pre_tokenizer, post_processor
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator([(TINY / "heldout.txt").read_text(encoding="utf-8"), SCRIPTS * 20], trainer)
    tokenizer.add_special_tokens([AddedToken("<｜User｜>", normalized=False), AddedToken("<｜User｜><", normalized=False)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=True), AddedToken("</think>", normalized=True), AddedToken("k> t", normalized=False), AddedToken("<｜place▁holder｜>")])
    return tokenizer


def v3():
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in V3_SPLITS]
    return learned(pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), processors.ByteLevel(trim_offsets=False))


def v2():
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in V2_SPLITS]
    digits = pre_tokenizers.Digits(individual_digits=True)
    begin = processors.TemplateProcessing("<｜begin▁of▁sentence｜> $A <｜end▁of▁sentence｜>", None, [(token, number) for number, token in enumerate(SPECIALS[:2])])
    return learned(pre_tokenizers.Sequence([*cuts, digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), processors.Sequence([processors.ByteLevel(), begin]))


def v3_whole_first():
    """A piece that is a token is that token, though no merges lead there."""
    data = json.loads(v3().to_str())
    data["model"]["ignore_merges"] = True
    data["model"]["merges"] = data["model"]["merges"][::2]
    return Tokenizer.from_str(json.dumps(data))


def lacking():
    """A vocabulary without most bytes: text loses them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:126]
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "ab": 128} | {token: 2 + number for number, token in enumerate(alphabet)}, [("a", "b")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


KINDS = {"sample": lambda: Tokenizer.from_file(str(TINY / "tokenizer.json")), "v3": v3, "v2": v2, "v3, whole first": v3_whole_first, "lacking": lacking}

ADVERSARIAL = {
    "empty": "",
    "one space": " ",
    "runs of spaces": "a  b   c    d     \t\t e  ",
    "line ends": "a\nb\r\nc\r\rd\n\n\n e \n \n  f\n",
    "blank": "\n \n\t\r\n   ",
    "digits": "1 12 123 1234 12345678901234567890 3.14 1e-9 ٣٤٥٦ ½¼ Ⅻ 四五",
    "CJK": "深度求索，人工智能。こんにちは、カタカナ！한국어 漢字かな交じり文",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ a👩‍🚀b",
    "marks": "e\u0301 a\u0308\u0323 \u0301alone हिन्दी ไทย עִבְרִית",
    "normal forms": "é é ﬁ Å Å ①",
    "spaces of Unicode": "a\u00a0b\u2003c\u3000d\u200be\ufefff\u2028g\u0085h",
    "words cut": "'tis isn't I'm WE'LL 'S don’t foo_bar(baz)->x!=y && #!/bin/sh $x @y",
    "special tokens": "<｜begin▁of▁sentence｜>hi<｜end▁of▁sentence｜> <｜User｜><｜User｜>< <｜▁pad▁｜>x",
    "added tokens": "<think>so</think> <think> text <think <<think>> <｜place▁holder｜>",
    "control characters": "\x00\x01\x1b[0m\x7f\x80\x9f",
    "private and odd": "\ue000\ufffd\ufffe\U000e0001\U0010fffd",
    "long words": "a" * 3000 + " " + "ab" * 2000 + "!" * 1000,
    "long blanks": "x" + " " * 5000 + "y" + "\n" * 3000 + "z",
    "100 kB": (TINY / "heldout.txt").read_text(encoding="utf-8")[:100_000],
    "100 kB of one letter": "a" * 100_000,
}


def drawn(count):
    """Texts of characters, marks and blanks that meet by chance."""
    draw = random.Random(5)
    alphabet = list("aZ09 '’.,!-_/(<>|\n\r\t  ") + ["\r\n", "  ", "é", "e\u0301", "深", "か", "ー", "한", "½", "٣", "👩", "\u200d", "\u00a0", "｜", "▁", "'s", "<think>", "k> t", *SPECIALS]
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(count)]


@pytest.fixture(scope="session")
def calls(tmp_path_factory):
    """The C interface, as a shared library of its own."""
    folder = tmp_path_factory.mktemp("held")
    archive = PROGRAM.parent / "libmoetrt.a"
    subprocess.run(["g++", "-shared", "-Wl,--whole-archive", archive, "-Wl,--no-whole-archive", "-ldl", "-o", folder / "libheld.so"], check=True)
    found = ctypes.CDLL(folder / "libheld.so")
    found.moetrt_error.restype = ctypes.c_char_p
    assert found.moetrt_open_patterns(ONIGURUMA.encode()) == 0, found.moetrt_error()
    return found


class Ours:
    """The C++ tokenizer of a folder, by the C interface."""

    def __init__(self, calls, folder, bos=-1):
        self.calls, self.handle = calls, ctypes.c_void_p()
        self.check(calls.moetrt_load_tokenizer(str(folder).encode(), ctypes.c_int64(bos), ctypes.byref(self.handle)))

    def check(self, code):
        if code:
            raise ValueError(self.calls.moetrt_error().decode())

    def encode(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        ids, count = (ctypes.c_int64 * (len(data) + 8))(), ctypes.c_size_t()
        self.check(self.calls.moetrt_encode(self.handle, data, ctypes.c_size_t(len(data)), ids, ctypes.c_size_t(len(ids)), ctypes.byref(count)))
        return ids[: count.value]

    def decode(self, ids):
        row, size = (ctypes.c_int64 * len(ids))(*ids), ctypes.c_size_t()
        self.check(self.calls.moetrt_decode(self.handle, row, ctypes.c_size_t(len(ids)), None, ctypes.c_size_t(0), ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self.check(self.calls.moetrt_decode(self.handle, row, ctypes.c_size_t(len(ids)), text, size, ctypes.byref(size)))
        return text.raw.decode()


@pytest.fixture(scope="session")
def pair(calls, tmp_path_factory):
    """``pair(kind)``: the same tokenizer, ours and Python's."""
    made = {}

    def make(kind):
        if kind not in made:
            theirs, folder = KINDS[kind](), tmp_path_factory.mktemp("tokenizer")
            theirs.save(str(folder / "tokenizer.json"))
            made[kind] = Ours(calls, folder), theirs
        return made[kind]

    return make


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_pythons(pair, kind, name):
    ours, theirs = pair(kind)
    assert ours.encode(ADVERSARIAL[name]) == theirs.encode(ADVERSARIAL[name]).ids


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_the_sample_prompts_are_pythons(pair, kind):
    ours, theirs = pair(kind)
    prompts = [line for name in ("prompts.txt", "prompts-heldout.txt") for line in (TINY / name).read_text(encoding="utf-8").splitlines()]
    assert len(prompts) > 200
    assert [ours.encode(prompt) for prompt in prompts] == [theirs.encode(prompt).ids for prompt in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_drawn_texts_are_pythons(pair, kind):
    ours, theirs = pair(kind)
    for text in drawn(2000):
        assert ours.encode(text) == theirs.encode(text).ids, text


@pytest.mark.parametrize("kind", ["sample", "v3", "v2"])
def test_every_character_is_cut_as_python_cuts_it(pair, kind):
    """Each that Unicode 14 knows, among letters: the tables of every Oniguruma that is served have them."""
    ours, theirs = pair(kind)
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    for begin in range(0, len(known), 4096):
        text = "".join(f"a{one}b {one}" for one in known[begin : begin + 4096])
        assert ours.encode(text) == theirs.encode(text).ids, hex(ord(known[begin]))


def test_characters_newer_than_the_tables_are_refused_or_cut_as_python_cuts_them(pair):
    """Unicode 15, 15.1 and 16: an emoji, an ideograph, a letter. An older Oniguruma would cut beside them elsewhere."""
    ours, theirs = pair("v3")
    for character in "\U0001fae8\U0002ebf0\u1c89":
        text = f"so{character}it 7{character}"
        try:
            assert ours.encode(text) == theirs.encode(text).ids
        except ValueError as refusal:
            assert f"U+{ord(character):04X} at byte 2" in str(refusal)  # noqa: PT017
            assert "--oniguruma" in str(refusal)  # noqa: PT017


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_ids_is_pythons(pair, kind):
    """Those of texts, and any at all: halves of characters, special tokens, ids of no token."""
    ours, theirs = pair(kind)
    draw = np.random.default_rng(2)
    rows = [theirs.encode(text).ids for text in [*ADVERSARIAL.values(), *drawn(200)]]
    rows += [draw.integers(0, theirs.get_vocab_size() + 20, draw.integers(1, 50)).tolist() for _ in range(1000)]
    for row in rows:
        assert ours.decode(row) == theirs.decode(row, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["sample", "v3"])
def test_text_comes_back(pair, kind):
    ours, _ = pair(kind)
    for name in ("digits", "CJK", "emoji", "marks", "line ends", "100 kB"):
        assert ours.decode(ours.encode(ADVERSARIAL[name])) == ADVERSARIAL[name]


def test_bytes_that_are_no_text_are_refused(pair):
    ours, _ = pair("v3")
    for data in (b"abc\xff", b"abc\xc0\x80", b"abc\xed\xa0\x80", b"abc\xf5\x80\x80\x80", b"abc\xe6\xb7"):
        with pytest.raises(ValueError, match="not UTF-8: its byte 3"):
            ours.encode(data)


def test_bos_is_put_before_text_that_lacks_it(calls, pair, tmp_path):
    _, theirs = pair("v3")
    theirs.save(str(tmp_path / "tokenizer.json"))
    python, ours = Text(tmp_path, 0), Ours(calls, tmp_path, 0)
    for text in ("", "hello", "<｜begin▁of▁sentence｜>hello", " <｜begin▁of▁sentence｜>"):
        assert ours.encode(text) == python.encode(text)


def change(*path, to):
    def spoil(data):
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = to

    return spoil


UNREAD = {
    "a model of another type": (change("model", "type", to="Unigram"), "model.type is \"Unigram\""),
    "dropout": (change("model", "dropout", to=0.1), "model.dropout is 0.1"),
    "an unknown token": (change("model", "unk_token", to="<unk>"), "model.unk_token"),
    "a prefix inside words": (change("model", "continuing_subword_prefix", to="##"), "model.continuing_subword_prefix"),
    "an end of words": (change("model", "end_of_word_suffix", to="</w>"), "model.end_of_word_suffix"),
    "bytes as tokens": (change("model", "byte_fallback", to=True), "model.byte_fallback"),
    "a normalizer": (change("normalizer", to={"type": "NFC"}), "normalizer.type is \"NFC\""),
    "a normalizer in a row": (change("normalizer", to={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "normalizer.normalizers[0].type is \"Lowercase\""),
    "another pre-tokenizer": (change("pre_tokenizer", to={"type": "Metaspace"}), "pre_tokenizer.type is \"Metaspace\""),
    "no pre-tokenizer": (change("pre_tokenizer", to=None), "pre_tokenizer has no ByteLevel"),
    "a cut after bytes": (lambda data: data["pre_tokenizer"]["pretokenizers"].reverse(), "pre_tokenizer.pretokenizers[1].type is"),
    "a cut that removes": (change("pre_tokenizer", "pretokenizers", 0, "behavior", to="Removed"), "behavior is \"Removed\""),
    "a cut turned round": (change("pre_tokenizer", "pretokenizers", 0, "invert", to=True), "invert is true"),
    "a cut at plain text": (change("pre_tokenizer", "pretokenizers", 0, "pattern", to={"String": "x"}), "pattern has 'String'"),
    "a space put first": (change("pre_tokenizer", "pretokenizers", 3, "add_prefix_space", to=True), "add_prefix_space is true"),
    "another post-processor": (change("post_processor", to={"type": "RobertaProcessing"}), "post_processor.type is \"RobertaProcessing\""),
    "another decoder": (change("decoder", to={"type": "Metaspace"}), "decoder is"),
    "no decoder": (change("decoder", to=None), "decoder is nothing"),
    "texts cut off": (change("truncation", to={"max_length": 8}), "truncation is"),
    "texts filled up": (change("padding", to={"strategy": "BatchLongest"}), "padding is"),
    "a word of its own": (change("added_tokens", 0, "single_word", to=True), "added_tokens[0].single_word"),
    "blanks taken along": (change("added_tokens", 3, "lstrip", to=True), "added_tokens[3].lstrip"),
    "another id": (change("added_tokens", 4, "id", to=2999), "added_tokens[4].id is 2999"),
    "one id twice": (change("model", "vocab", "the", to=7), "the id 7 is that of"),
    "a merge of nothing": (lambda data: data["model"]["merges"].append(["the", "zzz"]), "which model.vocab lacks"),
    "a merge of three": (lambda data: data["model"]["merges"].append("a b c"), "where two tokens are expected"),
    "another version": (change("version", to="2.0"), "version is \"2.0\""),
    "a field of tomorrow": (change("segmenter", to={}), "has 'segmenter'"),
    "an option of tomorrow": (change("model", "cache", to=7), "model has 'cache'"),
    "text for an id": (change("model", "vocab", "!", to="3"), "where a token id is expected"),
    "no vocabulary": (lambda data: data["model"].pop("vocab"), "model lacks 'vocab'"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_would_give_other_ids_is_refused_by_name(calls, pair, tmp_path, name):
    data = json.loads(pair("v3")[1].to_str())
    spoil, told = UNREAD[name]
    spoil(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="tokenizer.json: ") as refusal:
        Ours(calls, tmp_path)
    assert told in str(refusal.value)


def test_a_pattern_that_is_none_is_refused_by_its_number(calls, pair, tmp_path):
    data = json.loads(pair("v3")[1].to_str())
    data["pre_tokenizer"]["pretokenizers"][1]["pattern"]["Regex"] = "(unclosed"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="pre_tokenizer's pattern 1 is no regular expression: end pattern with unmatched parenthesis"):
        Ours(calls, tmp_path).encode("x")


@pytest.mark.parametrize("pattern", ["", "x*", r"\b", "(?<=a)", "(?=é)", "(?i)STRASSE|ß", r"\s+$", "^a", "[[:alpha:]&&[^a-f]]+"])
def test_patterns_that_match_nothing_or_look_around_cut_as_in_python(calls, pair, tmp_path, pattern):
    data = json.loads(pair("v3")[1].to_str())
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    ours, theirs = Ours(calls, tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ["straße STRASSE ab  ", "axxa é xx深", *drawn(100)]:
        assert ours.encode(text) == theirs.encode(text).ids, text


def test_a_pattern_without_end_is_given_up(calls, pair, tmp_path):
    data = json.loads(pair("v3")[1].to_str())
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+b"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="pattern 0 cannot be matched: retry-limit-in-match over"):
        Ours(calls, tmp_path).encode("a" * 60)


def test_merges_in_the_older_form_are_the_same(calls, pair, tmp_path):
    data = json.loads(pair("v3")[1].to_str())
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    text = ADVERSARIAL["100 kB"]
    assert Ours(calls, tmp_path).encode(text) == pair("v3")[1].encode(text).ids


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Engines of the sample model, two ranks."""
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    folder = tmp_path_factory.mktemp("sample")
    export_model(ExportRequest(TINY, folder / "graphs", Plan(2)))
    build_engines(EngineRequest(folder / "graphs", "ort", folder / "ort"))
    return folder / "ort"


def call(folder, *options, program=None):
    words = [program or PROGRAM, folder, "--onnxruntime", LIBRARY, "--oniguruma", ONIGURUMA, *options]
    return subprocess.run([word if isinstance(word, bytes) else str(word) for word in words], capture_output=True, check=False)


@pytest.mark.parametrize("prompt", ["The nice thing about computers is", "def rotate(self, n=1):\n", "深度求索 é <｜end▁of▁sentence｜>", ""])
def test_run_gives_pythons_tokens_and_text(moetrt, sample, prompt):
    python = json.loads(moetrt("run", sample, "--prompt", prompt, "--max-tokens", 24, "--json").out)
    done = call(sample, "--prompt", prompt, "--max-tokens", 24, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {name: report[name] for name in ("prompt_tokens", "tokens", "text")} == {name: python[name] for name in ("prompt_tokens", "tokens", "text")}
    assert report["text"]


def test_run_prints_text_whole_or_as_it_comes(moetrt, sample):
    options = ("--prompt", "Murphy's Law", "--max-tokens", 40, "--ignore-eos")
    python = moetrt("run", sample, *options).out
    assert call(sample, *options).stdout.decode() == call(sample, *options, "--stream").stdout.decode() == python
    ids = ",".join(map(str, Text(sample, 0).encode("Murphy's Law")))
    assert call(sample, "--token-ids", ids, "--max-tokens", 40, "--ignore-eos").stdout.decode() == python


def test_streamed_text_is_whole_characters(sample, moetrt):
    """Tokens drawn evenly are parts of characters mostly; what Python's streamer makes of them is what is printed."""
    options = ("--prompt", "é", "--max-tokens", 200, "--ignore-eos", "--temperature", 50, "--seed", 3)
    tokens = json.loads(call(sample, *options, "--json").stdout)["tokens"]
    streamer = Streamer(Text(sample, 0))
    shown = "".join([*map(streamer.add, tokens), streamer.end()])
    assert "\ufffd" in shown
    assert call(sample, *options, "--stream").stdout.decode() == shown + "\n"


def test_a_prompt_gives_the_logits_of_its_tokens(sample, tmp_path):
    assert call(sample, "--prompt", "So it is", "--logits", tmp_path / "logits").returncode == 0
    with load(sample) as chain:
        assert (tmp_path / "logits").read_bytes() == np.ascontiguousarray(chain.logits(Text(sample, 0).encode("So it is")), np.float32).tobytes()


def test_what_text_lacks_is_named(engines, sample, tmp_path):
    with pytest.raises(MoetrtError) as refusal:
        Text(engines("v3"), 0)
    done = call(engines("v3"), "--prompt", "x")
    assert (done.returncode, done.stderr.decode().splitlines()) == (1, [f"Error: {refusal.value.message}", f"Hint: {refusal.value.hint}"])

    done = subprocess.run([PROGRAM, sample, "--onnxruntime", LIBRARY, "--oniguruma", "/nowhere/libonig.so", "--prompt", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/nowhere/libonig.so" in done.stderr
    assert "libonig5" in done.stderr

    done = call(sample, "--prompt", b"a\xffb")
    assert (done.returncode, done.stderr) == (1, b"Error: the text is not UTF-8: its byte 1 belongs to no character.\n")
    for words in ((), ("--prompt", "x", "--token-ids", "3")):
        assert call(sample, *words).returncode == 2


def test_ids_need_neither_oniguruma_nor_a_tokenizer_that_is_read(sample, tmp_path):
    options = ("--token-ids", "0,17,42", "--max-tokens", 4, "--json")
    folder = Path(shutil.copytree(sample, tmp_path / "ort"))
    whole = json.loads(subprocess.run(list(map(str, [PROGRAM, folder, "--onnxruntime", LIBRARY, "--oniguruma", "/nowhere", *options])), capture_output=True, check=True).stdout)
    assert whole["text"]
    (folder / "tokenizer.json").write_text("{}")
    done = call(folder, *options)
    assert json.loads(done.stdout)["tokens"] == whole["tokens"]
    assert done.stderr.startswith(b"note: no text: ")


def test_the_example_prints_a_line_of_text(sample, tmp_path):
    for words in (
        ["cmake", "--install", PROGRAM.parent, "--prefix", tmp_path / "prefix"],
        ["cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"],
        ["cmake", "--build", tmp_path / "build"],
    ):
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    prompt = "The nice thing about computers is"
    done = subprocess.run([tmp_path / "build/generate", sample, LIBRARY, ONIGURUMA, prompt], capture_output=True, text=True, check=True)
    with load(sample) as chain:
        text = Text(sample, 0)
        assert done.stdout == prompt + text.decode(chain.generate(text.encode(prompt), max_tokens=16)) + "\n"


sanitized = pytest.mark.skipif(not SANITIZED.is_file(), reason="the sanitized C++ runtime is not built (make cpp-sanitized)")


@sanitized
def test_text_is_clean_under_sanitizers(sample, pair, tmp_path):
    folder = Path(shutil.copytree(sample, tmp_path / "ort"))
    for kind in ("sample", "v3", "v2", "v3, whole first"):
        _, theirs = pair(kind)
        theirs.save(str(folder / "tokenizer.json"))
        for name in ("emoji", "special tokens", "added tokens", "control characters", "line ends", "CJK"):
            prompt = ADVERSARIAL[name].replace("\x00", "")
            done = call(folder, "--prompt", prompt, "--max-tokens", 1, "--ignore-eos", "--json", program=SANITIZED)
            beyond = max(theirs.encode(prompt).ids) >= 2048
            assert done.returncode == beyond, done.stderr
            assert not beyond or b"not in the vocabulary of 2048" in done.stderr
    assert call(sample, "--prompt", "é", "--max-tokens", 8, "--temperature", 50, "--ignore-eos", "--stream", program=SANITIZED).returncode == 0


@sanitized
def test_damaged_tokenizers_never_crash(sample, tmp_path):
    """Bytes overwritten: served or refused, and clean under the sanitizers."""
    draw = np.random.default_rng(4)
    folder = Path(shutil.copytree(sample, tmp_path / "ort"))
    sound = (folder / "tokenizer.json").read_bytes()
    refused = 0
    for number in range(24):
        data = bytearray(sound)
        for place in draw.integers(2000 if number % 2 else len(data), size=3):
            data[place] = draw.integers(256)
        (folder / "tokenizer.json").write_bytes(bytes(data))
        done = call(folder, "--prompt", "So it is", "--max-tokens", 1, program=SANITIZED)
        assert done.returncode in (0, 1), done.stderr[-2000:]
        refused += done.returncode
    assert refused > 6
