"""The marketing examples: who answers, what to write, and what suits whom, each declared in a file of its own."""

from messages_experiments import EXPERIMENTS as MESSAGES
from preference_experiments import EXPERIMENTS as PREFERENCE
from response_experiments import EXPERIMENTS as RESPONSE

EXPERIMENTS = [*RESPONSE, *MESSAGES, *PREFERENCE]
