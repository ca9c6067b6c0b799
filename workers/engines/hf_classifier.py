"""Text-classification models of transformers, encoders and decoders alike, by their own forward pass.

Reward models with one label share their computation between completions of a prompt (hf_models.py). A classifier reads
each text by itself, in padded batches of similar lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from workers.engines.base import ModelError
from workers.engines.hf_models import DTYPES, is_scorer, max_positions

Encoded = Mapping[str, list[int]]  # input_ids and, where the model has them, token_type_ids


class TextClassifier:
    """A sequence-classification model with two labels or more, for inference on one device.

    `labels` are the names of its outputs, `function` turns them into scores: sigmoid if the config says that a text may
    have several labels, else softmax, as in a pipeline of transformers.
    """

    def __init__(self, path: str, dtype: str, *, max_length: int, device: torch.device) -> None:
        """Load the model. Texts are truncated at `max_length` tokens, or at the model's last position.

        Raises:
            ModelError: it is no classifier, has one label, or its files lack weights.
        """
        config = transformers.AutoConfig.from_pretrained(path)
        if not is_scorer(path):
            raise ModelError(f"{path} is not a classifier: its architecture is not sequence classification")
        if config.num_labels < 2:
            raise ModelError(f"{path} has one label: it is a reward model; use it with type: model")
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, dtype=DTYPES[dtype], output_loading_info=True
        )
        if lacking := sorted({*info["missing_keys"]} & {name for name, _ in model.named_parameters()}):
            raise ModelError(f"{path}: its files lack weights ({len(lacking)}, as {lacking[0]}); they would be random")
        self.labels: tuple[str, ...] = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self.function = "sigmoid" if config.problem_type == "multi_label_classification" else "softmax"
        self._model, self._device = model.to(device).eval(), device
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        limits = (max_length, self._tokenizer.model_max_length, max_positions(path), _last_position(model))
        self._max_length = min(limit for limit in limits if limit is not None)
        self._pad = config.get_text_config().pad_token_id
        ends = (self._tokenizer.eos_token_id, self._tokenizer.sep_token_id, self._pad)
        self._end = next((int(token) for token in ends if token is not None), 0)

    def outputs(self, texts: Sequence[str], premises: Sequence[str] | None, *, budget: int) -> NDArray[np.float64]:
        """Return the logits of all labels: [N, labels].

        Args:
            texts: texts, or the second parts of pairs.
            premises: first parts of the pairs; None: the texts are read alone.
            budget: tokens of a batch, padding included. Without a padding token in the config a batch is one text.
        """
        encoded = [self._encode(text, None if premises is None else premises[i]) for i, text in enumerate(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]["input_ids"]))
        result = np.empty((len(texts), len(self.labels)))
        while order:
            longest = len(encoded[order[-1]]["input_ids"])
            count = 1 if self._pad is None else max(1, budget // max(1, longest))
            batch = order[-count:]
            del order[-count:]
            result[batch] = self._infer([encoded[i] for i in batch], longest)
        return result

    def _encode(self, text: str, premise: str | None) -> Encoded:
        parts = (text,) if premise is None else (premise, text)
        encoded: Encoded = self._tokenizer(
            *parts, truncation="longest_first", max_length=self._max_length, return_attention_mask=False
        )
        # A tokenizer without special tokens gives none for an empty text, and a model needs one.
        return encoded if encoded["input_ids"] else {name: [self._end * (name == "input_ids")] for name in encoded}

    def _infer(self, batch: Sequence[Encoded], longest: int) -> NDArray[np.float64]:
        def padded(name: str, fill: int) -> torch.Tensor:
            rows = [[*part[name], *[fill] * (longest - len(part[name]))] for part in batch]
            return torch.tensor(rows, device=self._device)

        lengths = torch.tensor([len(part["input_ids"]) for part in batch], device=self._device)
        inputs = {"input_ids": padded("input_ids", self._pad or 0)}
        inputs["attention_mask"] = (torch.arange(longest, device=self._device) < lengths[:, None]).long()
        if "token_type_ids" in batch[0]:
            inputs["token_type_ids"] = padded("token_type_ids", 0)
        with torch.no_grad():
            logits: torch.Tensor = self._model(**inputs).logits
        return logits.double().cpu().numpy()


def _last_position(model: nn.Module) -> int | None:
    """Return the number of positions of a family that counts them from its padding token on, as RoBERTa; else None."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return None
