"""The places where a run's figures go: one file for each."""
