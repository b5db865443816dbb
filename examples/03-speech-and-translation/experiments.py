"""Speech here; translation joins it from `translation_experiments.py`."""

from speech_experiments import SPEECH

EXPERIMENTS = [SPEECH]
