"""The medical examples: pictures and a table, each declared in a file of its own."""

from images_experiments import EXPERIMENTS as IMAGES

EXPERIMENTS = [*IMAGES]
