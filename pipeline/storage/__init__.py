"""What is written: checkpoints, series, figures, and where."""
