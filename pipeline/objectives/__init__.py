"""Objectives: what positives and negatives make of a gradient."""
