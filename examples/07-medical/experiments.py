"""The medical examples: pictures and a table, each declared in a file of its own."""

from images_experiments import EXPERIMENTS as IMAGES
from patients_experiments import EXPERIMENTS as PATIENTS

EXPERIMENTS = [*IMAGES, *PATIENTS]
