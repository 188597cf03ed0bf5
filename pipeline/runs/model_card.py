"""A model card: what a trained energy is, in the form that model hubs read."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.common.types import Figures
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.exported import learned

QUANTITIES = {
    "test_log_likelihood": "held-out log-likelihood",
    "test_log_likelihood_bound": "held-out log-likelihood, at least",
    "test_pseudo_log_likelihood": "held-out pseudo-log-likelihood",
}


def model_card(checkpoint: Checkpoint, summary: Figures | None) -> str:
    """Returns the text of README.md: metadata in YAML between lines of three dashes, then Markdown.

    The figures are those of the run's `summary`, which is None where it was not evaluated at this
    checkpoint. No licence is named: that is the user's to choose.
    """
    config = checkpoint.manifest.config
    name, energy, data = (config["name"], config["energy"]["name"], config["data"]["name"])
    tags = ["energy-based-model", energy, config["objective"]["name"], config["kernel"]["name"]]
    metadata: dict[str, Any] = {
        "library_name": "ebm-pipeline",
        "tags": list(dict.fromkeys(tags)),
    }
    metrics = _metrics(summary or {})
    if metrics:
        result = {
            "task": {"type": "density-estimation", "name": "Density estimation"},
            "dataset": {"type": data, "name": data},
            "metrics": metrics,
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    told = (summary or {}).get("words", ["not evaluated at this step"])
    return "\n".join(
        [
            "---",
            "# license: name one of the hub's licences here",
            f"{front}---",
            "",
            f"# {name}",
            "",
            f"An energy-based model, p(x) = exp(-E(x)) / Z: {energy} energy, trained on {data} by"
            f" {config['objective']['name']} with {config['kernel']['name']} chains. These are the"
            f" averaged weights after {checkpoint.step} steps.",
            "",
            "```python",
            "import pipeline",
            "",
            "energy = pipeline.load(FOLDER)  # this folder",
            f"energies = energy(x)  # x [N, {', '.join(map(str, checkpoint.shape))}], nats",
            "```",
            "",
            "## Evaluation",
            "",
            "```",
            *told,
            "```",
            "",
            "## Configuration",
            "",
            "```yaml",
            yaml.safe_dump(learned(checkpoint), sort_keys=False).rstrip(),
            "```",
            "",
        ]
    )


def _metrics(summary: Figures) -> list[dict[str, Any]]:
    """Returns the metrics of a summary, nats a row, each with how it was had and between which
    bounds it is, where these are known.
    """
    found = []
    for key, words in QUANTITIES.items():
        if key not in summary:
            continue
        bounds = [summary.get(f"{key}_{side}") for side in ("at_least", "at_most")]
        told = [f"{words}, nats a row"]
        if None not in bounds:
            told.append(f"between {bounds[0]:.2f} and {bounds[1]:.2f}")
        if "unreliable" in summary:
            told.append(f"unreliable: {summary['unreliable']}")
        if "method" in summary:
            told.append(summary["method"])
        kind = key.removeprefix("test_").removesuffix("_bound").replace("_", "-")
        found.append({"type": kind, "name": "; ".join(told), "value": round(summary[key], 4)})
    return found
