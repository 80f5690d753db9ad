"""Train the sample checkpoint ``examples/tiny-v3`` from text that Python and three Debian packages carry.

    python examples/train_tiny_v3.py --fortunes /usr/share/games/fortunes --output examples/tiny-v3

Needs torch, transformers and tokenizers; nothing is downloaded.
"""

import argparse
import copy
import math
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tiny_report
import torch
from tiny_muon import make_optimizers
from tiny_text import Corpus, collect_corpus, join_documents, sample_prompts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
"""Ids 0, 1 and 2, under the names that the releases use."""

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_lora_rank": 128,
    "max_position_embeddings": 1024,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 128,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 256,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 64,
    "vocab_size": 2048,
}
"""config.json as a release would write it; transformers 5 reads ``rope_scaling`` and ``torch_dtype`` too."""

HELDOUT = 0.014
"""Share of all characters that is never trained on."""

TOKENS_PER_STEP = 8192
PHASES = ((0.0, 256), (0.6, 512), (0.9, 1024))
"""(progress from which it holds, sequence length in tokens): positions that were never trained read badly, so all are, late."""


@dataclass(frozen=True)
class Recipe:
    """What decides a run."""

    seed: int
    minutes: float
    """Wall-clock training time; the schedules run over it."""
    steps: int | None
    """If given, the schedules run over these steps, so that a run does not depend on the machine's speed."""
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    """On what attention and MLP add to the residual, while training: the text is read many times."""
    bias_rate: float = 2e-3
    """Gamma of the router bias update at the start; falls linearly to zero."""
    warmup: float = 0.02
    """Share of the run."""

    def progress(self, step: int, seconds: float) -> float:
        """How far the run is, 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (60 * self.minutes))

    def rate(self, progress: float) -> float:
        """The factor on every learning rate: linear warm-up, then a cosine to 2 %."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        along = (progress - self.warmup) / (1 - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along))


def read_config() -> DeepseekV3Config:
    """`CONFIG` as transformers sees it; from a copy, as transformers writes its own names into what it reads."""
    return DeepseekV3Config.from_dict(copy.deepcopy(CONFIG))


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with as many entries as the config says; encoding puts `BOS` in front unless told not to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


class Batches:
    """Endless shuffled epochs: ``bos document eos bos document eos …``, cut into rows."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], seed: int) -> None:
        self.documents = tiny_report.encode_documents(tokenizer, texts)
        self.draw = torch.Generator().manual_seed(seed)
        self.stream = torch.empty(0, dtype=torch.long)
        self.tokens_per_epoch = sum(map(len, self.documents))

    def next(self, length: int) -> Tensor:
        """One step's rows. *Shape:* ``(TOKENS_PER_STEP / length, length + 1)``"""
        rows = TOKENS_PER_STEP // length
        while len(self.stream) < rows * length + 1:
            order = torch.randperm(len(self.documents), generator=self.draw).tolist()
            self.stream = torch.cat([self.stream, *(self.documents[i] for i in order)])
        taken = self.stream[: rows * length + 1]
        self.stream = self.stream[rows * length :]
        return taken.unfold(0, length + 1, length)


def make_model(recipe: Recipe) -> DeepseekV3ForCausalLM:
    """An untrained float32 model with residual dropout and routers that stay float32 under autocast."""
    torch.manual_seed(recipe.seed)
    config = read_config()
    config.dtype = torch.float32
    model = DeepseekV3ForCausalLM(config)
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp):
            module.register_forward_hook(
                lambda m, _, out: drop_features(out, recipe.dropout) if m.training else out
            )
    for gate in tiny_report.routers(model):
        gate.forward = torch.autocast("cpu", enabled=False)(gate.forward)
    return model


def drop_features(states: Tensor, share: float) -> Tensor:
    """Zero the same features at all positions of a row: a hundred times fewer random numbers than for each value.

    :param states: *Shape:* ``(rows, length, hidden)``
    """
    mask = torch.rand(len(states), 1, states.shape[-1]) >= share
    return states * (mask / (1 - share)).to(states.dtype)


@dataclass
class Run:
    """A training run under way: everything that a checkpoint of it holds."""

    recipe: Recipe
    model: DeepseekV3ForCausalLM
    batches: Batches
    step: int = 0
    seconds: float = 0.0
    optimizers: tuple[torch.optim.Optimizer, ...] = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.optimizers = make_optimizers(self.model, recipe.muon_lr, recipe.adam_lr, recipe.weight_decay)
        self.base_rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]

    @property
    def progress(self) -> float:
        return self.recipe.progress(self.step, self.seconds)

    def advance(self) -> float:
        """One step: forward, backward, update, router biases; returns the loss in nats a token."""
        started = time.monotonic()
        length = next(length for begin, length in reversed(PHASES) if self.progress >= begin)
        rows = self.batches.next(length)
        with tiny_report.counted_choices(self.model) as choices:
            loss = self.loss(rows)
            loss.backward()
        self.update_weights()
        self.balance(choices)
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss.item()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy of every row's next tokens.

        :param rows: token ids. *Shape:* ``(rows, length + 1)``
        """
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    def update_weights(self) -> None:
        """Clip, set the rates of this moment, step, clear."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = self.recipe.rate(self.progress)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        self.model.zero_grad()

    def balance(self, choices: list[Tensor]) -> None:
        """Move each router's bias towards an even load: the rule without an auxiliary loss.

        :param choices: for each router, how often each expert was chosen in this step. *Shape:* ``(experts,)``
        """
        gamma = self.recipe.bias_rate * (1 - self.progress)
        for gate, load in zip(tiny_report.routers(self.model), choices, strict=True):
            gate.e_score_correction_bias += gamma * torch.sign(load.float().mean() - load)

    def save(self, path: Path) -> None:
        """Write what `restore` reads; a killed run loses only what came after."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "draw": self.batches.draw.get_state(),
            "stream": self.batches.stream,
            "torch": torch.get_rng_state(),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> None:
        """Go on where `save` was called."""
        state = torch.load(path, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for one, saved in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(saved)
        self.batches.draw.set_state(state["draw"])
        self.batches.stream = state["stream"]
        torch.set_rng_state(state["torch"])


def train(run: Run, checkpoint: Path, glimpse: tuple[list[Tensor], int]) -> Iterator[None]:
    """Advance to the end; report every 50 steps and yield at every checkpoint (about two minutes)."""
    saved, losses = run.seconds, []
    while run.progress < 1.0:
        losses.append(run.advance())
        if run.step % 50 == 0:
            speed = run.step * TOKENS_PER_STEP / run.seconds
            say(
                f"step {run.step}  {run.progress:6.1%}  loss {sum(losses) / len(losses):.3f}  {speed:,.0f} tokens/s"
            )
            losses = []
        if run.seconds - saved > 120:
            run.save(checkpoint)
            saved = run.seconds
            say(
                f"  held out: {tiny_report.measure(run.model, *glimpse).bits_per_byte:.4f} bits a byte of the first documents"
            )
            yield


def first_heldout(tokenizer: Tokenizer, corpus: Corpus) -> tuple[list[Tensor], int]:
    """The first 60 held-out documents, encoded, and their length in bytes: enough to watch a run by."""
    documents = corpus.heldout[:60]
    encoded = tiny_report.encode_documents(tokenizer, [document.text for document in documents])
    return encoded, len(join_documents(documents).encode())


def write_text(corpus: Corpus, tokenizer: Tokenizer, seed: int, output: Path) -> None:
    """The files that do not depend on training: config, tokenizer, held-out text, prompts."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(output / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    settings["model_max_length"] = CONFIG["max_position_embeddings"]
    tiny_report.write_json(output / "tokenizer_config.json", settings)
    (output / "heldout.txt").write_text(join_documents(corpus.heldout), encoding="utf-8")
    for name, documents, count in (
        ("prompts.txt", corpus.train, 192),
        ("prompts-heldout.txt", corpus.heldout, 32),
    ):
        (output / name).write_text("\n".join(sample_prompts(documents, count, seed)) + "\n", encoding="utf-8")


def write_model(model: DeepseekV3ForCausalLM, output: Path) -> None:
    """Weights rounded to bfloat16 under the release's names, router biases in float32, two shards and their index."""
    config = read_config()
    rounded = DeepseekV3ForCausalLM(config)
    rounded.load_state_dict(model.state_dict())
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    for stale in output.glob("model*.safetensors"):
        stale.unlink()
    rounded.save_pretrained(output, max_shard_size="9MB")
    for shard in output.glob("model*.safetensors"):
        shard.chmod(0o644)
    tiny_report.write_json(output / "config.json", CONFIG)
    tiny_report.write_json(
        output / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": False},
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint into")
    parser.add_argument(
        "--fortunes",
        type=Path,
        default=Path("/usr/share/games/fortunes"),
        help="folder of the Debian packages fortunes and fortunes-min (default: %(default)s)",
    )
    parser.add_argument(
        "--manual",
        type=Path,
        default=Path("/usr/share/doc/python3.11/html/_sources"),
        help="folder of the pages' sources in the Debian package python3.11-doc (default: %(default)s)",
    )
    parser.add_argument(
        "--library",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help="folder of the standard library's sources (default: this Python's)",
    )
    parser.add_argument("--minutes", type=float, default=48, help="training time (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead, whatever time it takes")
    parser.add_argument(
        "--seed", type=int, default=0, help="for split, weights and order (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(tempfile.gettempdir()) / "train-tiny-v3.pt",
        help="file that keeps the state of the run every two minutes (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument(
        "--preview", type=float, help="also write the checkpoint once, after this many minutes"
    )
    return parser.parse_args()


def finish(run: Run, corpus: Corpus, output: Path) -> None:
    """Write the weights, then measure what was written."""
    write_model(run.model, output)
    facts = {
        "steps": run.step,
        "tokens": run.step * TOKENS_PER_STEP,
        "tokens_per_epoch": run.batches.tokens_per_epoch,
        "minutes": round(run.seconds / 60, 2),
        "tokens_per_second": round(run.step * TOKENS_PER_STEP / run.seconds),
        "seed": run.recipe.seed,
        "training_sources": tiny_report.bytes_by_source(corpus.train),
        "heldout_sources": tiny_report.bytes_by_source(corpus.heldout),
    }
    say(tiny_report.report(output, facts))


def main() -> None:
    arguments = parse_arguments()
    corpus = collect_corpus(
        arguments.fortunes, arguments.manual, arguments.library, heldout=HELDOUT, seed=arguments.seed
    )
    texts = [document.text for document in corpus.train]
    tokenizer = train_tokenizer(texts)
    write_text(corpus, tokenizer, arguments.seed, arguments.output)
    recipe = Recipe(seed=arguments.seed, minutes=arguments.minutes, steps=arguments.steps)
    run = Run(recipe, make_model(recipe), Batches(tokenizer, texts, arguments.seed))
    if arguments.resume:
        run.restore(arguments.checkpoint)
    glimpse = first_heldout(tokenizer, corpus)
    say(f"{len(texts)} documents, {run.batches.tokens_per_epoch:,} tokens an epoch")
    preview = arguments.preview
    for _ in train(run, arguments.checkpoint, glimpse):
        if preview is not None and run.seconds > 60 * preview:
            finish(run, corpus, arguments.output)
            preview = None
    finish(run, corpus, arguments.output)


if __name__ == "__main__":
    main()
