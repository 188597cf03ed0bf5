"""The settings that `benchmarks.time_to_likelihood --tune` tries."""
SETTINGS = {"digits RBM": {}, "digits perceptron": {}}
