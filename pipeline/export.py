"""Export a trained energy: as graphs for other runtimes, and as weights with a model card.

    python -m pipeline.export run=URL to=FOLDER [format=all|onnx|torch|safetensors]

URL is a run's output folder, or one of its checkpoints, on any fsspec file system. Neither Ray nor
the run's data are needed. The weights are the averaged ones.

    python -m pipeline.export run=runs/digits-c6a31f0c55 to=exported
        all of the files below
    python -m pipeline.export run=runs/digits-c6a31f0c55 to=exported format=onnx
        energy.onnx and energy_and_gradient.onnx, which need pip install 'ebm-pipeline[onnx]'

In the folder:

    energy.onnx, energy.pt2
        position [rows, *shape] float32 to energy [rows], nats, for any number of rows; the energy
        of a conditional model has the input context [rows, *context shape] as well
    energy_and_gradient.onnx, energy_and_gradient.pt2
        the same, and the gradient in the position [rows, *shape]; of a model over more than two
        levels that in the one-hot encoding [rows, *shape, levels], and of one over components of
        several kinds none
    model.safetensors, config.json
        the tensors by their names and what they are of: pipeline.load(FOLDER) opens them
    README.md
        a model card, with the run's held-out likelihood where it was evaluated; its licence is
        for you to choose

Each graph is compared with the energy itself on rows that it was not made with, to 1e-5.

Exit status: 0 done, 2 refused before the start, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config.arguments import carry_out, parse, usage
from pipeline.config.export import Settings


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""

    def work(texts: Sequence[str]) -> None:
        settings, _ = parse(texts, Settings, ())
        from pipeline.runs.exporting import export

        print("\n".join(export(settings)), flush=True)

    return carry_out(arguments, usage(__doc__ or "", Settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
