"""The driving examples: what is on the street, and where to steer, each declared in a file of its own."""

from detection_experiments import EXPERIMENTS as DETECTION
from steering_experiments import EXPERIMENTS as STEERING

EXPERIMENTS = [*DETECTION, *STEERING]
