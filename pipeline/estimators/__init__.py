"""Estimators as scikit-learn has them, over runs; their door is `pipeline.sklearn`."""
