"""The folder of a run: its checkpoints, its artefacts, and what a resumed run must find."""
