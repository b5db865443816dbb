"""Connectionist temporal classification (wav2vec 2.0, HuBERT, WavLM): every 20 milliseconds a letter, or nothing."""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pefttool import Loss, ModelError
from pefttool_audio import recordings
from pefttool_audio.listener import IGNORE, Listener, as_weights, padded

if TYPE_CHECKING:
    from torch import Tensor

#: Of an encoded row: the characters of its transcript that are heard, and that the model has no token for.
UNWRITTEN = "unwritten"
#: Punctuation that changes how a word is written.
APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
log = logging.getLogger(__name__)


def frames(config: Any, samples: int) -> int:
    """Frames that the model makes of so many samples: its convolutions are not padded."""
    layers = list(zip(config.conv_kernel, config.conv_stride, strict=True))
    if getattr(config, "add_adapter", False):
        layers += [(1, config.adapter_stride)] * config.num_adapter_layers
    for kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
    return max(0, samples)


def alone(config: Any) -> bool:
    """Whether rows have to go through the model one by one.

    With a group norm the first convolution's outputs are scaled by their spread over the whole width of the batch:
    a row would be heard otherwise beside a longer one.
    """
    return getattr(config, "feat_extract_norm", "layer") == "group"


class Ctc(Listener):
    """Labels are the processor's tokens, mostly letters. What it has no token for is left out of a transcript."""

    def __init__(self, processor: Any, config: Any) -> None:
        super().__init__(processor, config)
        if processor is None:  # a plan from a config alone: batches of silence
            return
        blank = self.tokenizer.pad_token_id
        if blank is None or blank != config.pad_token_id:
            found = f"its tokenizer pads with id {blank}, its config with {config.pad_token_id}"
            raise ModelError(f"{found}; expected one id, that of the blank")

    def written(self, text: str) -> dict[str, Any]:
        """`labels`, and the letters and digits that there is no label for; punctuation is not heard."""
        text = self._in_its_case(" ".join(text.split()))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        left_out = {self.tokenizer.unk_token_id, self.tokenizer.pad_token_id}
        return {"labels": [i for i in ids if i not in left_out], UNWRITTEN: self._unwritten(text, left_out)}

    def _unwritten(self, text: str, left_out: set[int]) -> str:
        heard = {c for c in text if unicodedata.category(c)[0] in "LMN" or c in APOSTROPHES}
        missed = {c for c in heard if not left_out.isdisjoint(self.tokenizer(c, add_special_tokens=False)["input_ids"])}
        return "".join(c for c in text if c in missed)

    def shown(self, labels: Sequence[int]) -> str:
        return str(self.tokenizer.decode(labels, group_tokens=False))

    def _in_its_case(self, text: str) -> str:
        """The text in capitals where the model knows no others, or in small letters where it knows none but those."""
        letters = [token for token in self.tokenizer.get_vocab() if len(token) == 1 and token.isalpha()]
        if not any(letter.islower() for letter in letters):
            return text.upper()
        return text if any(letter.isupper() for letter in letters) else text.lower()

    def positions(self, path: str, labels: Sequence[int]) -> int:
        return frames(self.config, recordings.samples(path, self.rate))

    def unfit(self, path: str, labels: Sequence[int]) -> str | None:
        return None

    def learnable(self, path: str, labels: Sequence[int]) -> bool:
        return 0 < len(labels) + _repeated(labels) <= self.positions(path, labels)

    def unlearnable(self, path: str, labels: Sequence[int]) -> str:
        if not labels:
            return "the model has no token for any character of its transcript: write it in the model's letters"
        heard, repeated = self.positions(path, labels), _repeated(labels)
        blanks = f", and {repeated} for the blanks between equal ones" if repeated else ""
        needed = f"{len(labels)} characters need a frame each{blanks}"
        found = f"its {self.seconds(path):.2f} s are {heard} frames, and {needed}"
        return f"{found}: give the whole recording, or only what is said in it"

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_values` and `attention_mask` [B, samples], `labels` [B, L], `frame_mask` [B, frames]."""
        import torch

        values = [self._values(str(e["audio"]), int(e["length"])) for e in examples]
        counts = [frames(self.config, len(v)) for v in values]
        labels = [e["labels"] if e["audio"] else e["labels"][: max(1, e["length"] // 4)] for e in examples]
        return {
            "input_values": padded(values, 0.0, "float32"),
            "attention_mask": padded([[1] * len(v) for v in values], 0, "int64"),
            "labels": padded(labels, IGNORE, "int64"),
            "frame_mask": torch.arange(max(counts)) < torch.tensor(counts)[:, None],
        }

    def _values(self, path: str, length: int) -> Any:
        """Samples as the model hears them; silence of `length` frames where there is no recording."""
        import numpy as np

        if not path:
            return np.zeros(_samples(self.config, length), dtype=np.float32)
        extract = self.processor.feature_extractor
        return extract(self.samples(path), sampling_rate=self.rate, return_tensors="np")["input_values"][0]

    def transcribe(self, model: Any, paths: Sequence[str], generation: Mapping[str, Any]) -> list[str]:
        """The likeliest token of every frame; repetitions are one, blanks are none."""
        from pefttool.nn import embedding_offload

        device = embedding_offload.device_of(model)
        rows = [{"audio": path, "labels": [0], "length": 0} for path in paths]
        batch = {name: tensor.to(device) for name, tensor in self.collate(rows).items()}
        heard = [logits.argmax(-1).tolist() for logits in _logits(model, batch)]
        return [self.tokenizer.decode(ids).strip() for ids in heard]


def _repeated(labels: Sequence[int]) -> int:
    """How often a token follows itself: the blank has to stand between."""
    return sum(a == b for a, b in pairwise(labels))


def _samples(config: Any, count: int) -> int:
    """The fewest samples that `count` frames are made of."""
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        count = (count - 1) * stride + kernel
    return count


def _logits(model: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Of every row `[frames, tokens]`, without padding."""
    values, counts = as_weights(batch["input_values"], model), batch["frame_mask"].sum(-1).tolist()
    if not alone(model.config):
        logits = model(input_values=values, attention_mask=batch["attention_mask"]).logits
        return [row[:count] for row, count in zip(logits, counts, strict=True)]
    lengths = batch["attention_mask"].sum(-1).tolist()
    return [model(input_values=row[None, :length]).logits[0] for row, length in zip(values, lengths, strict=True)]


def loss(model: Any, batch: Mapping[str, Tensor]) -> Loss:
    """Summed CTC loss (float32); its weight is the number of tokens in the transcripts."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [row.float().log_softmax(-1) for row in _logits(model, batch)]
    trained = batch["labels"] != IGNORE
    total = _ctc_loss(
        pad_sequence(rows),  # [frames, B, tokens]
        batch["labels"][trained],
        torch.tensor([len(row) for row in rows]),
        trained.sum(-1),
        blank=model.config.pad_token_id,
    )
    return Loss(total, trained.sum())


@functools.cache
def _tell_of_the_cpu() -> None:
    log.warning("PyTorch has no CTC loss for Apple's GPUs: the CPU computes it, and the GPU the rest")


def _ctc_loss(scores: Tensor, labels: Tensor, frames: Tensor, counts: Tensor, blank: int) -> Tensor:
    """Summed over the rows. In a simulation, in which PyTorch has none, what takes as much memory."""
    import torch
    from torch._subclasses import FakeTensor
    from torch.nn.functional import ctc_loss

    if not isinstance(scores, FakeTensor):
        device = scores.device
        if device.type == "mps":
            _tell_of_the_cpu()
            scores, labels, counts = scores.cpu(), labels.cpu(), counts.cpu()
        return ctc_loss(scores, labels, frames, counts, blank=blank, reduction="sum").to(device)

    class Pretended(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scores: Tensor) -> Tensor:
            states = scores.new_empty(scores.shape[1], scores.shape[0], 2 * int(counts.max()) + 1)
            ctx.save_for_backward(scores, states)
            return scores.new_empty(())

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return torch.empty_like(ctx.saved_tensors[0])

    pretended: Tensor = Pretended.apply(scores)  # type: ignore[no-untyped-call]
    return pretended
