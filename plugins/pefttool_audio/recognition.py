"""speech-recognition: a recording, and what is said in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttool import Caution, Facts, Loaded, Loss, ModelError, Options, Problem, Row, Setting, Task
from pefttool.toolkit.columns import describe, find_column, missing_column
from pefttool_audio import ctc, recordings, whisper, word_errors
from pefttool_audio.listener import IGNORE

if TYPE_CHECKING:
    from torch import Tensor, nn

AUDIO_COLUMNS = ("audio", "path", "file", "file_name", "audio_path", "audio_file", "recording")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
#: Characters that a warning lists.
SHOWN = 5
#: What Whisper hears at a time.
WINDOW = 30.0
WHISPER_POSITIONS = 1500 + 448


class RecognitionOptions(Options):
    audio_column: str | None = Field(
        None, description=f"column with the recording's path; default: the first of {', '.join(AUDIO_COLUMNS)}"
    )
    text_column: str | None = Field(
        None, description=f"column with the transcript; default: the first of {', '.join(TEXT_COLUMNS)}"
    )
    language: str | None = Field(
        None, description="what is spoken, such as en or spanish: multilingual Whisper models have to be told"
    )
    normalize: word_errors.Normalize = Field(
        "basic",
        description="before words are compared: `basic` (lower case, no punctuation), `english` (also numbers,"
        " contractions and titles spelt in one way), `none`; `wer_as_written` never is",
    )
    max_seconds: float = Field(
        WINDOW, gt=0, description="longer recordings are bad rows: Whisper hears 30 seconds, CTC models hear all"
    )


class SpeechRecognition(Task):
    """A recording, and what is said in it (Whisper; wav2vec 2.0, HuBERT and other CTC models)."""

    name = "speech-recognition"
    Options = RecognitionOptions
    primary = ("wer", "min")
    generative = True
    judged_by_answers = True
    repeatable = True
    truncates = False
    #: As long as Whisper can write: 30 seconds may well hold more than the usual 64 tokens.
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 444}
    #: Not SEQ_2_SEQ_LM: what plain peft wraps by that type hands Whisper `input_ids`, which it does not take.
    peft_task_type = None
    example: ClassVar[Mapping[str, Any]] = {
        "model": "example:whisper-tiny.en",
        "data": {"train": "example:asterisk-prompts", "max_train_rows": 64, "max_eval_rows": 32},
    }

    def defaults(self) -> Mapping[str, Any]:
        # Rows have the length that they have: sequence_length is what a plan without data is made for.
        return {"batch_size": 8, "epochs": 2, "sequence_length": WHISPER_POSITIONS}

    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        audio = next((c for c in AUDIO_COLUMNS if all(recordings.is_recording(v.get(c)) for v in sample)), None)
        text = next((c for c in TEXT_COLUMNS if all(isinstance(v.get(c), str) for v in sample)), None)
        if audio is None or text is None:
            return None
        return f"columns {audio!r} (recordings) and {text!r} (transcripts)"

    def recognise_model(self, config: Any) -> str | None:
        return f"{config.model_type} hears speech" if _kind(config) is not None else None

    def check_row(self, values: Mapping[str, Any], options: RecognitionOptions) -> str | None:
        text = find_column(values, options.text_column, TEXT_COLUMNS)
        if text is None:
            return missing_column(values, options.text_column, TEXT_COLUMNS, "text_column")
        if not isinstance(values[text], str) or not values[text].strip():
            return f"column {text!r}: found {describe(values[text])}, expected what is said in the recording"
        return self.check_input(values, options)

    def check_input(self, values: Mapping[str, Any], options: RecognitionOptions) -> str | None:
        audio = find_column(values, options.audio_column, AUDIO_COLUMNS)
        if audio is None:
            return missing_column(values, options.audio_column, AUDIO_COLUMNS, "audio_column")
        path = values[audio]
        if not isinstance(path, str) or not path.strip():
            return f"column {audio!r}: found {describe(path)}, expected the path of a recording"
        fault = recordings.fault(path)
        if fault is not None:
            return f"column {audio!r}: found {describe(path)}: {fault}"
        if recordings.seconds(path) > options.max_seconds:
            found = f"column {audio!r}: found {recordings.seconds(path):.1f} s in {describe(path)}"
            cut = (
                "cut it into pieces, each with its own words (ffmpeg -i FILE -f segment -segment_time 25 part%03d.wav)"
            )
            ctc = "; with a CTC model (wav2vec2), which hears all of it, raise task.max_seconds"
            return f"{found}, expected at most {options.max_seconds:g} s (task.max_seconds): {cut}{ctc}"
        damage = recordings.damage(path)
        return None if damage is None else f"column {audio!r}: found {describe(path)}: {damage}"

    def locate(self, row: Row, options: RecognitionOptions) -> Row:
        audio = find_column(row.values, options.audio_column, AUDIO_COLUMNS)
        path = row.values[audio] if audio is not None else None
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            return row
        located = Path(row.file).absolute().parent / Path(path).expanduser()
        return Row({**row.values, str(audio): str(located)}, row.file, row.line)

    def reads(self, values: Mapping[str, Any], options: RecognitionOptions) -> Iterable[str]:
        text = find_column(values, options.text_column, TEXT_COLUMNS)
        return [name for name in (find_column(values, options.audio_column, AUDIO_COLUMNS), text) if name is not None]

    def files(self, values: Mapping[str, Any], options: RecognitionOptions) -> tuple[str, ...]:
        return (self._audio(values, options),)

    def key(self, values: Mapping[str, Any], options: RecognitionOptions) -> str:
        return recordings.content_key(self._audio(values, options))

    def _audio(self, values: Mapping[str, Any], options: RecognitionOptions) -> str:
        return str(values[find_column(values, options.audio_column, AUDIO_COLUMNS) or "audio"])

    def _text(self, values: Mapping[str, Any], options: RecognitionOptions) -> str:
        return str(values[find_column(values, options.text_column, TEXT_COLUMNS) or "text"])

    def check(self, options: RecognitionOptions, facts: Facts) -> list[Problem]:
        problems = recordings.missing_packages()
        if facts.model_type == "whisper" and options.max_seconds > WINDOW:
            message = f"{options.max_seconds:g}: Whisper hears {WINDOW:g} s at a time; use at most that, and cut rows"
            problems.append(Problem("task.max_seconds", message))
        return problems

    def load(self, source: Any, setting: Setting) -> Loaded:
        from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor

        kind = _kind(source.config)
        if kind is None:
            raise ModelError(
                f"model {source.path}: task {self.name!r} knows Whisper and CTC models on samples (wav2vec2, hubert,"
                f" wavlm, ...), and this is a {source.config.model_type!r}; use one of those"
            )
        # SpecAugment draws from numpy's random state, which no checkpoint holds: a resumed run would be another.
        if kind == "ctc":
            model: Any = source.model(AutoModelForCTC, apply_spec_augment=False)
            # Else it asks for gradients of the samples themselves while it trains. Adapters decide what of it trains.
            getattr(model, "freeze_feature_encoder", lambda: None)()
            return Loaded(model, ctc.Ctc(source.processor(AutoProcessor), model.config))
        model = source.model(AutoModelForSpeechSeq2Seq, apply_spec_augment=False)
        if source.for_rows or setting.options.language is not None:
            whisper.check_language(model, setting.options.language)
        processor = source.processor(AutoProcessor)
        spoken = setting.options.language if whisper.multilingual(model) else None
        return Loaded(model, whisper.Whisper(processor, model.config, spoken))

    def unused(self, model: nn.Module) -> tuple[str, ...]:
        """What stands for hidden stretches of sound: nothing is hidden (`apply_spec_augment`)."""
        return tuple(name for name, _ in model.named_parameters() if name.endswith(".masked_spec_embed"))

    def left_alone(self, model: nn.Module) -> tuple[str, ...]:
        """Whisper's encoder, which computes 30 seconds whatever the recording: frozen, it hears each only once."""
        return ("model.encoder",) if _kind(getattr(model, "config", None)) == "whisper" else ()

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        """The letters of a CTC model; Whisper's output layer is pretrained, and tied to its embeddings."""
        return ("lm_head",) if _kind(getattr(model, "config", None)) == "ctc" else ()

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        head = "lm_head" if self.head_modules(model) else "proj_out"
        return model.get_submodule(str(getattr(model, "base_model_prefix", "model"))), model.get_submodule(head)

    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        audio = self._audio(row.values, setting.options)
        written = processor.written(self._text(row.values, setting.options))
        labels = written["labels"]
        trained = sum(label != IGNORE for label in labels) if processor.learnable(audio, labels) else 0
        return {
            "audio": audio,
            **written,
            "length": processor.positions(audio, labels),
            "trained": trained,
            "weight": trained,
            "truncated": False,
        }

    def check_encoded(self, example: Mapping[str, Any], processor: Any) -> str | None:
        unfit: str | None = processor.unfit(example["audio"], example["labels"])
        return unfit

    def noted(
        self, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], setting: Setting
    ) -> Sequence[str]:
        """A warning of letters and digits that a CTC model has no token for: it learns transcripts without them."""
        missed = Counter("".join(example.get(ctc.UNWRITTEN, "") for example in train))
        if not missed:
            return ()
        rows = sum(bool(example.get(ctc.UNWRITTEN)) for example in train)
        shown = ", ".join(f"{character!r} ({count})" for character, count in missed.most_common(SHOWN))
        more = f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
        return (
            Caution(
                f"data: {rows} of {len(train)} transcripts are learnt without characters that the model has no"
                f" token for: {shown}{more}: write numbers as words and letters as the model has them, or use a model"
                " of the language"
            ),
        )

    def untrained(self, example: Mapping[str, Any], processor: Any, setting: Setting) -> str:
        why: str = processor.unlearnable(example["audio"], example["labels"])
        return why

    def filler(self, length: int, setting: Setting) -> dict[str, Any]:
        """Silence, with as many labels as a model has positions left."""
        labels = [1] * length
        counts = {"length": length, "trained": length, "weight": length, "truncated": False}
        return {"audio": "", "labels": labels, **counts}

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = processor.collate(examples)
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        return whisper.loss(model, batch) if "input_features" in batch else ctc.loss(model, batch)

    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        paths = [self._audio(row.values, setting.options) for row in rows]
        return [{"text": text} for text in processor.transcribe(model, paths, setting.generation)]

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """Word and character error rates; `..._as_written` count case and punctuation, too."""
        truth = [self._text(row.values, setting.options) for row in rows]
        given = [str(p["text"]) for p in predictions]
        wer, cer = word_errors.error_rates(truth, given, setting.options.normalize)
        wer_as_written, cer_as_written = word_errors.error_rates(truth, given, "none")
        return {
            "wer": wer,
            "cer": cer,
            "wer_as_written": wer_as_written,
            "cer_as_written": cer_as_written,
            "loss": loss,
        }

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        trained = processor.shown([label for label in example["labels"] if label != IGNORE])
        return f"{Path(example['audio']).name} -> «{trained}»"


def _kind(config: Any) -> str | None:
    """`whisper`, `ctc` (on samples), or None for what this task cannot run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

    model_type = getattr(config, "model_type", None)
    if model_type == "whisper":
        return "whisper"
    return "ctc" if model_type in MODEL_FOR_CTC_MAPPING_NAMES and hasattr(config, "conv_kernel") else None
