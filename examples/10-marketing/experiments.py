"""The marketing examples: who answers, and what to write, each declared in a file of its own."""

from messages_experiments import EXPERIMENTS as MESSAGES
from response_experiments import EXPERIMENTS as RESPONSE

EXPERIMENTS = [*RESPONSE, *MESSAGES]
