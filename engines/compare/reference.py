"""A Hugging Face checkpoint run by transformers in float32, eager: the one door to that library."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import LoadError
from exporter.models import read_model

if TYPE_CHECKING:
    import numpy as np


class Reference:
    """transformers' own model, with the few members of a chain that comparing needs."""

    arithmetic = "fp32"

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_model(folder).config
        self.max_context = self.config.positions
        if self.config.stored == "fp8":
            raise LoadError(
                f"{folder} is stored in FP8, which transformers reads wrongly without a GPU.",
                hint="Compare with engines of another build, or cast the checkpoint to bf16 first.",
            )
        try:
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging as transformers_logging
        except ImportError as cause:
            raise LoadError(f"running {folder} as it is needs transformers and torch: {cause}.", hint="pip install 'moetrt[export,test]'") from cause
        transformers_logging.disable_progress_bar()
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def logits(self, token_ids: Sequence[int]) -> "np.ndarray":
        """*Shape:* float32 ``(tokens, vocab)``"""
        with self.torch.no_grad():
            return self.model(self.torch.tensor([list(token_ids)])).logits[0].float().numpy()

    def close(self) -> None:
        """Nothing to let go."""
