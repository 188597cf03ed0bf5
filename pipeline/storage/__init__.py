"""Files of a run: checkpoints and figures, and where they are."""
