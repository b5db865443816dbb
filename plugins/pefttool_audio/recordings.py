"""Recordings on disk: how long they are, and their samples as a model wants them.

`soundfile` (libsndfile) reads them: it has wheels for every platform with the codecs inside. torchaudio's own readers
went with its version 2.9, and what replaced them needs an installed ffmpeg.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool import DataError, Problem

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
#: What is written for a length that is not known yet, as where a WAV is piped; more is no length.
UNKNOWN_SIZE = 0x7FFF0000
#: How libsndfile notes a file that was cut off. Of MP3 it tells the length that a header says, which is nearly exact.
CUT_SIZE = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
CUT_OGG = "Last page lacks an end-of-stream bit"
MOST_OF_IT = 0.95
INSTALL = 'pip install "pefttool[audio]"'
#: What reads recordings, and what measures how well they were understood.
NEEDED = ("jiwer", "scipy", "soundfile")


def missing_packages() -> list[Problem]:
    """One Problem if something that speech tasks need is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [Problem("task.name", f"speech needs the packages {', '.join(missing)}: {INSTALL}")]


def is_recording(value: Any) -> bool:
    """Whether this looks like the path of a recording, by its suffix."""
    return isinstance(value, str) and "\0" not in value and Path(value).suffix.lower() in SUFFIXES


def fault(path: str) -> str | None:
    """Why this file is no recording with at least one sample, or None; only its header is read."""
    try:
        if not Path(path).is_file():
            return "no such file"
        return None if seconds(path) > 0 else "the recording is empty"
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    except (OSError, ValueError) as error:  # a name too long, a null character
        return f"cannot be read ({error})"


def damage(path: str) -> str | None:
    """Why this recording, which has no `fault`, cannot be read to its end, or None. A file is read once."""
    return _damage(path, _modified(path))


@lru_cache(maxsize=1 << 16)
def _damage(path: str, modified: int) -> str | None:
    try:
        _decoded(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def content_key(path: str) -> str:
    """The same for the same bytes, under whatever name."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return path


def seconds(path: str) -> float:
    """The length of a recording, from its header. Raises DataError."""
    frames, rate = _header(path, _modified(path))
    return frames / rate


def samples(path: str, rate: int) -> int:
    """How many samples `read` gives, from the header. Raises DataError."""
    frames, found = _header(path, _modified(path))
    return -(-frames * rate // found)


def _modified(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


@lru_cache(maxsize=1 << 16)
def _header(path: str, modified: int) -> tuple[int, int]:
    """(samples of one channel, samples in a second)."""
    import soundfile

    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise DataError(f"{path}: no recording that libsndfile can read ({_reason(error)})") from error
    return int(info.frames), int(info.samplerate)


def read(path: str, rate: int) -> np.ndarray[Any, Any]:
    """`[samples]` float32 at `rate` Hz, the mean of all channels. Raises DataError, naming the file.

    Resampled by scipy's polyphase filter, which is kept, exact in its ratio, and the same on every machine.
    """
    import numpy as np

    mono, found = _decoded(path)
    if found != rate:
        from scipy.signal import resample_poly

        common = gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    return np.ascontiguousarray(mono, dtype=np.float32)


def _decoded(path: str) -> tuple[np.ndarray[Any, Any], int]:
    """(the mean of all channels, samples in a second) of a file as it is. Raises DataError, naming the file."""
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            cut = _cut(len(samples), file.frames, file.extra_info)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise DataError(f"{path}: cannot be read to its end ({_reason(error)}): is the file complete?") from error
    if cut is not None:
        raise DataError(f"{path}: cannot be read to its end ({cut}): is the file complete?")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: holds samples that are not numbers: write the recording again")
    return mono, int(rate)


def _cut(read: int, said: int, log: str) -> str | None:
    """What shows that a file ends before its recording does, which libsndfile takes as it is and notes in its log."""
    if read < MOST_OF_IT * said:
        return f"{read} of its {said} samples are there"
    sizes = CUT_SIZE.search(log)
    if sizes is not None and 0 < int(sizes[1]) < UNKNOWN_SIZE and int(sizes[2]) < int(sizes[1]):
        return f"{sizes[2]} of its {sizes[1]} bytes are there"
    return "its last page is not there" if CUT_OGG in log else None


def _reason(error: BaseException) -> str:
    text = str(error).rpartition(": ")[2] or str(error)
    return " ".join(text.split()).rstrip(".")[:100]
