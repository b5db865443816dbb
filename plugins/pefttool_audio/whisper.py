"""Whisper: an encoder that hears 30 seconds, whatever the recording, and a decoder that writes the transcript."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pefttool import Loss, ModelError, UsageError
from pefttool_audio.listener import IGNORE, Listener, as_weights, padded

if TYPE_CHECKING:
    from torch import Tensor, nn

#: The first vocabulary with tokens for languages; smaller ones are of English-only models.
MULTILINGUAL_VOCABULARY = 51865
#: Spectrum frames that the encoder's convolutions make one position of.
FRAMES_PER_POSITION = 2


def multilingual(model: Any) -> bool:
    """Whether the model has to be told a language, by its generation config or otherwise by its vocabulary."""
    said = getattr(model.generation_config, "is_multilingual", None)
    return bool(said) if said is not None else int(model.config.vocab_size) >= MULTILINGUAL_VOCABULARY


def check_language(model: Any, language: str | None) -> None:
    """Raise UsageError where `task.language` is missing, unknown, or of no use."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    if not multilingual(model):
        if language is not None and language.lower() not in ("en", "english"):
            raise UsageError(f"task.language: {language!r}, and this model hears English only; drop it, or use another")
        return
    if language is None:
        raise UsageError("task.language: this model hears many languages; say which yours is, such as en or spanish")
    if language.lower() not in {*LANGUAGES, *TO_LANGUAGE_CODE}:
        raise UsageError(f"task.language: {language!r} is no language of Whisper's, such as en or spanish")


class Whisper(Listener):
    """Labels are what follows the prompt (start, language, task, no timestamps): the prompt is given, not learnt.

    Without a processor (a plan from a config alone) it makes batches of silence.
    """

    def __init__(self, processor: Any, config: Any, language: str | None) -> None:
        super().__init__(processor, config)
        self.language = language
        if processor is None:  # a prompt of the same length: start, language and task if there are any, no timestamps
            self.prompt = [int(config.decoder_start_token_id)] * (2 if language is None else 4)
            return
        self.tokenizer.set_prefix_tokens(
            language=language, task="transcribe" if language is not None else None, predict_timestamps=False
        )
        self.prompt = list(self.tokenizer.prefix_tokens)
        if self.prompt[0] != config.decoder_start_token_id:
            start = self.tokenizer.convert_ids_to_tokens(self.prompt[0])
            message = f"its tokenizer starts with {start!r} (id {self.prompt[0]})"
            raise ModelError(f"{message}, its config with id {config.decoder_start_token_id}: they do not fit")

    def written(self, text: str) -> dict[str, list[int]]:
        ids = [*self.tokenizer(text.strip(), add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        return self._prompted(ids)

    def _prompted(self, ids: list[int]) -> dict[str, list[int]]:
        """The token that the decoder sees at each position, and the one that it is to write next."""
        unlearnt = [IGNORE] * (len(self.prompt) - 1)
        return {"decoder_input_ids": [*self.prompt, *ids[:-1]], "labels": [*unlearnt, *ids]}

    def positions(self, path: str, labels: Sequence[int]) -> int:
        return int(self.config.max_source_positions) + len(labels)

    def unfit(self, path: str, labels: Sequence[int]) -> str | None:
        window = self.processor.feature_extractor.n_samples / self.rate
        if self.seconds(path) > window:
            return f"{path}: a recording of {self.seconds(path):.1f} s, and the model hears {window:g} s; cut it"
        room, begun = int(self.config.max_target_positions), len(self.prompt) - 1
        if len(labels) > room:
            return f"a transcript of {len(labels) - begun} tokens, and the model writes {room - begun}; cut it"
        return None

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_features` [B, mels, frames], `decoder_input_ids` and `labels` [B, T]; padding is never trained."""
        rows = [e if e["audio"] else self._silent(int(e["length"])) for e in examples]
        return {
            "input_features": self._features([str(e["audio"]) for e in examples]),
            "decoder_input_ids": padded([e["decoder_input_ids"] for e in rows], self.config.pad_token_id, "int64"),
            "labels": padded([e["labels"] for e in rows], IGNORE, "int64"),
        }

    def _silent(self, length: int) -> dict[str, list[int]]:
        """As many labels as `length` leaves beside the encoder's positions, and the decoder has positions for."""
        begun = len(self.prompt) - 1
        positions = min(length - self.positions("", ()), int(self.config.max_target_positions))
        return self._prompted([1] * max(1, positions - begun))

    def _features(self, paths: Sequence[str]) -> Tensor:
        import torch

        if not any(paths):
            frames = FRAMES_PER_POSITION * int(self.config.max_source_positions)
            return torch.zeros(len(paths), int(self.config.num_mel_bins), frames)
        extract = self.processor.feature_extractor
        # Each by itself: a row's features are the same, bit by bit, in whatever batch it is. And in float32, though the
        # model may be computing in another precision around it.
        with torch.autocast("cpu", enabled=False):
            spectra = [extract(self.samples(p), sampling_rate=self.rate, return_tensors="pt") for p in paths]
        return torch.cat([spectrum["input_features"] for spectrum in spectra])

    def transcribe(self, model: Any, paths: Sequence[str], generation: Mapping[str, Any]) -> list[str]:
        import torch

        from pefttool.nn import embedding_offload

        features = as_weights(self._features(paths), model).to(embedding_offload.device_of(model))
        config = copy.deepcopy(model.generation_config)
        room = int(self.config.max_target_positions) - len(self.prompt)
        drawn = () if generation.get("do_sample") else ("temperature", "top_p")
        most = min(int(generation.get("max_new_tokens", room)), room)
        # transformers takes either limit, and warns of both; to `max_length` Whisper's generate adds the prompt's.
        limits = {"max_length": most, "max_new_tokens": None}
        config.update(**{**{k: v for k, v in generation.items() if k not in drawn}, **limits})
        spoken = {} if self.language is None else {"language": self.language, "task": "transcribe"}
        with torch.no_grad(), _quietly():
            ids = model.generate(
                features,
                generation_config=config,
                attention_mask=torch.ones_like(features[:, 0], dtype=torch.long),
                **spoken,
            )
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers' own Whisper code calls its `generate` in a way that it warns of."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """Summed cross-entropy (float32) over the tokens of the transcripts and their ends."""
    from torch.nn.functional import cross_entropy

    logits = model(
        input_features=as_weights(batch["input_features"], model),
        decoder_input_ids=batch["decoder_input_ids"],
        use_cache=False,
    ).logits
    trained = batch["labels"] != IGNORE
    return Loss(cross_entropy(logits[trained].float(), batch["labels"][trained], reduction="sum"), trained.sum())
