"""31 seconds: what `data check` advises."""

import numpy as np
import soundfile
from case_bench import Bench


def check(bench: Bench) -> None:
    soundfile.write(bench.folder / "long.wav", np.full(31 * 8000, 0.1), 8000)
    data = bench.write("rows.jsonl", {"audio": "long.wav", "text": "one"})
    answer = bench.pefttool("data", "check", data)
    assert answer.code == 1 and "found 31.0 s" in answer.text, answer.text
    assert "ffmpeg -i FILE -f segment -segment_time 25 part%03d.wav" in answer.text
    assert "with a CTC model (wav2vec2), which hears all of it, raise task.max_seconds" in answer.text
    raised = bench.pefttool("data", "check", data, "-o", "task.max_seconds=60", "--task", "speech-recognition")
    assert "found 31.0 s" not in raised.text
