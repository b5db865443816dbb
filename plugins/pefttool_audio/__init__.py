"""Speech tasks (speech-recognition) and the formats that recordings come in."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 2


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_audio.recognition import SpeechRecognition

    return [SpeechRecognition()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_audio.formats import Recordings, Transcripts
    from pefttool_audio.pairs import SpokenText

    return [Recordings(), SpokenText(), Transcripts()]
