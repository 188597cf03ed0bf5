"""Training it without installing anything: python in_code.py [key=value ...]"""

import sys

import torch
from own_energy import StudentExperts

import pipeline
from pipeline.config.compose import compose
from pipeline.train import run

if __name__ == "__main__":
    torch.manual_seed(0)  # the module's weights as given are where training starts
    config = compose(["energy=custom", "name=student_experts", *sys.argv[1:]])
    summary = run(config, energy=StudentExperts((8, 8), experts=128))
    # a checkpoint holds parameters, not code: the module is given again
    energy = pipeline.load(summary["output"], energy=StudentExperts((8, 8), experts=128))
    print(
        sum(parameter.numel() for parameter in energy.parameters()),
        "parameters, read back from",
        summary["checkpoint"],
    )
