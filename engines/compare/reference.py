"""A Hugging Face checkpoint run by transformers in float32, eager: the one door to that library."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.reader import Checkpoint
from exporter.errors import LoadError
from exporter.models import FAMILIES, read_model
from exporter.plan import files
from exporter.plan.parallel import Plan

from .sides import Given, Made

if TYPE_CHECKING:
    import numpy as np


class Reference:
    """transformers' own model, as one side."""

    arithmetic, plan, sealed = "fp32", Plan(1), None

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_model(folder).config
        checkpoint, family = Checkpoint(folder, self.config), FAMILIES[self.config.family]
        checkpoint.coverage(self.config, family.KEYS, family.UNUSED)  # transformers would make up what is missing
        self.fingerprint, self.max_context = checkpoint.fingerprint(), self.config.positions
        self.identity = (str(folder.resolve()), "transformers")
        if self.config.stored == "fp8":
            raise LoadError(
                f"{folder} is stored in FP8, which transformers reads wrongly without a GPU.",
                hint="Compare with engines of another build, or cast the checkpoint to bf16 first.",
            )
        try:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM
            from transformers.utils import logging as transformers_logging
        except ImportError as cause:
            raise LoadError(f"running {folder} as it is needs transformers and torch: {cause}.", hint="pip install 'moetrt[export,test]'") from cause
        transformers_logging.disable_progress_bar()
        self.torch = torch
        # Of the family's own class, whatever else its model_type is called: classes and layouts of tensors are found by that name.
        raw = files.read_json(folder / "config.json") | {"model_type": self.config.family}
        config = AutoConfig.for_model(**{name: value for name, value in raw.items() if name != "auto_map"})
        self.model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()

    def close(self) -> None:
        """Nothing to let go."""

    def begin(self, context: int) -> "ReferenceRun":
        return ReferenceRun(self)

    @contextmanager
    def open(self, segment: str) -> Iterator["ReferenceSegment"]:
        yield ReferenceSegment(self, segment)

    def empty_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()


class ReferenceRun:
    """One prompt through the model."""

    def __init__(self, side: Reference) -> None:
        self.side, self.cache = side, side.empty_cache()

    def step(self, token_ids: "np.ndarray", start: int) -> "np.ndarray":
        """*Shape:* float32 ``(tokens, vocab)``"""
        torch = self.side.torch
        with torch.no_grad():
            return self.side.model(torch.from_numpy(token_ids), past_key_values=self.cache, use_cache=True).logits[0].float().numpy()


class ReferenceSegment:
    """The modules of one segment, called as the model's own decoder layers call them."""

    def __init__(self, side: Reference, name: str) -> None:
        self.side, self.name, self.torch, self.model = side, name, side.torch, side.model
        head, _, self.kind = name.rpartition(".")
        self.layer = self.model.model.layers[int(head.removeprefix("layers."))] if head else None

    def begin(self, context: int) -> Any:
        return self.side.empty_cache()

    def cache(self, state: Any) -> "dict[str, np.ndarray]":
        return {}

    def run(self, given: Given, state: Any) -> Made:
        with self.torch.no_grad():
            if self.layer is None:
                return self._ends(given)
            hidden = self._tensor(given.hidden)
            hidden = hidden if given.update is None else hidden + self._tensor(given.update)
            update, extra, experts = self._attention(hidden, given, state) if self.kind == "attention" else self._feed_forward(hidden)
            return _made({"hidden": hidden, "update": update} | extra, experts)

    def _ends(self, given: Given) -> Made:
        if self.name == "embed":
            return _made({"hidden": self.model.model.embed_tokens(self.torch.from_numpy(given.token_ids))})
        stream = self._tensor(given.hidden) + self._tensor(given.update)
        return _made({"logits": self.model.lm_head(self.model.model.norm(stream))})

    def _attention(self, hidden: Any, given: Given, cache: Any) -> tuple[Any, dict[str, Any], None]:
        torch, attention = self.torch, self.layer.self_attn
        positions = given.start + torch.arange(hidden.shape[1])
        seen = torch.arange(given.start + hidden.shape[1])
        mask = torch.where(seen <= positions[:, None], 0.0, float("-inf"))[None, None]
        turned = self.model.model.rotary_emb(hidden, positions[None])
        update, _ = attention(self.layer.input_layernorm(hidden), attention_mask=mask, past_key_values=cache, position_embeddings=turned)
        kept = cache.layers[attention.layer_idx]
        latent, key = kept.keys[0, 0, given.start :], kept.values[0, 0, given.start :]
        if getattr(attention.config, "rope_interleave", False):  # kept with even places before odd ones
            key = torch.stack(key.chunk(2, -1), -1).flatten(-2)
        return update, {"latents": torch.cat([latent, key], -1)}, None

    def _feed_forward(self, hidden: Any) -> tuple[Any, dict[str, Any], "np.ndarray | None"]:
        x = self.layer.post_attention_layernorm(hidden)
        experts = self.layer.mlp.gate(x)[2].reshape(x.shape[1], -1).numpy() if self.kind == "moe_ffn" else None
        return self.layer.mlp(x), {}, experts

    def _tensor(self, value: "np.ndarray") -> Any:
        return self.torch.from_numpy(value.astype("float32", copy=False))


def _made(values: dict[str, Any], experts: "np.ndarray | None" = None) -> Made:
    """:param values: *Shape:* ``(1, tokens, width)``, or without the first."""
    return Made({0: {name: value.float().numpy().reshape(-1, value.shape[-1]) for name, value in values.items()}}, {}, experts)
