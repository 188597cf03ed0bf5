"""How the pipeline scales, from one pool to a thousand GPUs.

    python -m benchmarks.scaling [--docs FOLDER] [--without-ray]

Simulation and arithmetic (`benchmarks.flow`) are held against Ray, in three parts: a sweep over
pools; models on 8 to 1,000 GPUs; and short runs on Ray, of pools and a parameter server that sleep.
The last says how far simulation and arithmetic are from what happens. The program writes
FOLDER/scaling.json, FOLDER/scaling.png and the tables of FOLDER/scaling.md. It reads in
FOLDER/pipeline_benchmark.json what a batch costs the driver. It takes about 3 minutes.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.flow import Setting, Simulation, limits
from benchmarks.harness import say

CASES = {
    "1 pool, in lock-step": Setting(1, 1, 0, 0.1, 0.1),
    "1 pool, rounds as long as steps": Setting(1, 1, 1, 0.1, 0.1),
    "4 pools, the bottleneck": Setting(4, 4, 2, 0.1, 0.05, sigma=0.2),
    "8 pools, half of them a step": Setting(8, 4, 3, 0.1, 0.02, inflight=2, sigma=0.2),
    "8 pools, one 5 times as slow": Setting(
        8, 8, 2, 0.1, 0.05, inflight=2, sigma=0.2, slow_pools=1, slowness=5.0
    ),
    "16 pools, the trainer the bottleneck": Setting(16, 16, 1, 0.05, 0.1),
    "16 pools, a quarter of them a step": Setting(16, 4, 4, 0.2, 0.03, inflight=2, sigma=0.3),
}


def measured(s: Setting, steps: int) -> float:
    """Return the steps a second of a run on Ray, of pools and a server that sleep."""
    import ray

    from benchmarks.on_ray import started
    from benchmarks.trivial_actors import TrivialPool, TrivialServer

    sizes = (
        f"chains.pools={s.pools}",
        "chains.per_pool=1",
        f"trainer.negatives={s.batches_per_step}",
    )
    pool = type("Pool", (TrivialPool,), {"seconds": s.round_seconds, "sigma": s.sigma})
    server = type("Server", (TrivialServer,), {"seconds": s.step_seconds})
    bounds = (f"trainer.lag={s.lag}", f"trainer.inflight={s.inflight or 'null'}")
    with started((*sizes, *bounds), (1,), pool=pool, server=server) as (runner, _):
        slow = runner.pools.members[: s.slow_pools]
        ray.get([member.actor.pace.remote(s.round_seconds * s.slowness) for member in slow])
        for _ in range(steps // 4):
            runner.step()
        clock = time.perf_counter()
        for _ in range(steps):
            runner.step()
        return steps / (time.perf_counter() - clock)


def validate(batch_seconds: float) -> dict[str, Any]:
    """Return simulated and predicted beside measured steps a second.

    A run of one pool says how long a call is on its way.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    alone = Setting(1, 1, 1, 0.01, 0.05, batch_seconds=batch_seconds)
    hop = (
        max(
            0.0,
            1 / measured(alone, 60) - alone.step_seconds - alone.batch_seconds - alone.call_seconds,
        )
        / 2
    )
    rows = {}
    for name, case in CASES.items():
        s = case._replace(batch_seconds=batch_seconds, hop_seconds=hop)
        took, told = measured(s, 60), Simulation(s).run(300).steps_per_second
        rows[name] = {
            "measured": took,
            "simulated": told,
            "predicted": min(limits(s).values()),
            "error": told / took - 1,
        }
        say(
            f"on Ray, {name}: "
            + ", ".join(f"{key} {value:.3f}" for key, value in rows[name].items())
        )
    ray.shutdown()
    return {"hop_ms": 1e3 * hop, "batch_ms": 1e3 * batch_seconds, "rows": rows}


GPUS = (8, 64, 256, 1000)
ROW_BYTES = 48
"""Bytes of a batch's columns beside its positions, for each chain."""


class Model(NamedTuple):
    """A model's size, and what is assumed of a GPU.

    A GPU does `flops` a second; an energy at one position takes `forward` of them.
    """

    name: str
    parameters: float
    dimension: int
    forward: float
    flops: float
    per_pool: int
    transitions: int


PERCEPTRON = Model("perceptron", 665_089, 784, 2 * 664_064, 5e13, 16_384, 200)
CONVOLUTIONS = Model("convolutions", 1e8, 64 * 64 * 3, 1e10, 1.5e14, 256, 60)
MODELS = {
    "perceptron": PERCEPTRON,
    "perceptron, 5 times the transitions": PERCEPTRON._replace(transitions=1000),
    "convolutions": CONVOLUTIONS,
    "convolutions, 10 times the transitions": CONVOLUTIONS._replace(transitions=600),
}


def example(model: Model, gpus: int, batch_seconds: float) -> Setting:
    """Return the setting of so many GPUs, a pool or a rank on each.

    They are shared out so that ranks keep up with 1.1 times what pools make. A transition is an
    energy and its gradient in x, 2 forward passes' worth. A step learns from as many positives as
    negatives, 3 passes' worth for each. Half of the pools make up a step.
    """
    batch_bytes = model.per_pool * (4 * model.dimension + ROW_BYTES)
    round_seconds = model.per_pool * model.transitions * 2 * model.forward / model.flops
    s = Setting(
        1,
        1,
        4,
        round_seconds,
        0.0,
        inflight=2,
        sigma=0.1,
        batch_seconds=batch_seconds,
        pools_per_node=8,
    )
    learned = model.per_pool * 6 * model.forward / model.flops
    share = 1.1 * (learned + batch_bytes / s.bandwidth) / round_seconds  # ranks for each pool
    ranks = min(gpus - 1, max(1, math.ceil(gpus * share / (1 + share))))
    each = max(1, round((gpus - ranks) / ranks / 2))
    reduced = 2 * 4 * model.parameters / s.bandwidth if ranks > 1 else 0.0
    return s._replace(
        pools=gpus - ranks,
        replicas=ranks,
        batches_per_step=ranks * each,
        step_seconds=each * learned + reduced,
        batch_bytes=batch_bytes,
        weight_bytes=4 * model.parameters,
    )


def row(s: Setting, steps: int = 30) -> dict[str, Any]:
    """Return a setting, its limits, and the simulation's figures."""
    allowed, outcome = limits(s), Simulation(s).run(steps)
    rates = {name: rate for name, rate in allowed.items() if math.isfinite(rate)}
    binds = min(rates, key=lambda name: rates[name])
    return {
        **s._asdict(),
        "limits": rates,
        "binds": binds,
        "predicted": rates[binds],
        **outcome._asdict(),
    }


COSTS = {
    "throughput_ratio": "negatives/s of two pools through Ray over those of two bare loops",
    "throughput_ratio_of_processor_time": "the same of processor time for a round",
    "overlap_speedup": "steps/s at a lag of 2 over those in lock-step, a round costing a step",
    "trainer_busy": "share of its time that the trainer computes, steps of 100 ms",
    "trainer_copies_per_batch": "copies of a batch at the trainer",
}


def costs(figures: dict[str, Any]) -> list[str]:
    """Return the measured costs as a table in Markdown."""
    lines = ["| measured | |", "|---|---|"]
    lines += [
        f"| {text} | {figures[name]:.3g} |" for name, text in COSTS.items() if name in figures
    ]
    by_pools = figures.get("details", {}).get("driver", {}).get("ms_per_batch", {})
    for name, text in {"all": "", "paced": ", 128 batches/s", "one": ", one batch a step"}.items():
        if name in by_pools:
            values = ", ".join(f"{count}: {value:.2f}" for count, value in by_pools[name].items())
            lines.append(f"| driver's processor time for a batch{text}, ms, by pools | {values} |")
    return lines


def tables(
    figures: dict[str, Any], examples: dict[str, list[dict[str, Any]]], runs: dict[str, Any]
) -> str:
    """Return all tables in Markdown."""
    header = (
        "| model | pools + ranks | round, s | step, s | in, GB/s a rank | weights out, GB a version"
        " | driver busy | limit |"
    )
    lines = [*costs(figures), "", f"{header} simulated |", "|---" * 9 + "|"]
    for name, rows in examples.items():
        for r in rows:
            rate = r["steps_per_second"]
            arriving = rate * r["batches_per_step"] * r["batch_bytes"] / r["replicas"] / 1e9
            sizes = (
                f"{r['pools']} + {r['replicas']} | {r['round_seconds']:.2f} |"
                f" {r['step_seconds']:.3f}"
            )
            out = r["weight_bytes"] * math.ceil(r["pools"] / r["pools_per_node"]) / 1e9
            flow = (
                f"{arriving:.2f} | {out:.2f} | {r['driver_busy']:.2f} | {r['binds']}"
                f" {r['predicted']:.3f} | {rate:.3f}"
            )
            lines.append(f"| {name} | {sizes} | {flow} |")
    if runs:
        lines += [
            "",
            "| on Ray | measured | simulated | predicted | simulation off by |",
            "|---" * 5 + "|",
        ]
        for name, r in runs["rows"].items():
            numbers = " | ".join(f"{r[key]:.2f}" for key in ("measured", "simulated", "predicted"))
            lines.append(f"| {name} | {numbers} | {100 * r['error']:+.1f} % |")
    return "\n".join(lines)


def draw(sweep: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw steps a second, the shares of time of trainer and driver, and lags, by pools."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    speed, busy, lag = figure.subplots(1, 3)
    for color, (name, rows) in enumerate(sweep.items()):
        pools = [r["pools"] for r in rows]
        speed.plot(pools, [r["predicted"] for r in rows], f"C{color}-", lw=1)
        speed.plot(pools, [r["steps_per_second"] for r in rows], f"C{color}o", ms=5)
        busy.plot(pools, [r["busy"] for r in rows], f"C{color}o-", ms=4, lw=1)
        busy.plot(pools, [r["driver_busy"] for r in rows], f"C{color}:")
        lags = rows[-1]["lags"]
        share = [100 * lags.get(age, 0) / sum(lags.values()) for age in range(4)]
        lag.bar(np.arange(4) + (color - 1.5) / 5, share, 0.2, color=f"C{color}", label=name)
    for axes, title, unit in (
        (speed, "speed: lines predicted, dots simulated", "steps a second"),
        (busy, "work: dots trainer, dotted driver", "share of the time"),
    ):
        axes.set_xscale("log", base=4)
        axes.set_xticks(pools, [str(number) for number in pools])
        axes.set_xlabel("pools", fontsize=9)
        axes.set_ylabel(unit, fontsize=9)
        axes.set_ylim(0, None)
        axes.set_title(title, fontsize=9)
    lag.set_xticks(range(4))
    lag.set_xlabel("age of a batch, versions", fontsize=9)
    lag.set_ylabel("% of all batches", fontsize=9)
    lag.set_title(f"age of batches, {pools[-1]} pools", fontsize=9)
    figure.legend(*lag.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


POOLS = (1, 4, 16, 64, 256, 1024)
# rounds of half a second that vary, steps that take 0.8 of what they would for the trainer to be
# the bottleneck
PLAIN = Setting(1, 1, 1, 0.5, 0.4, sigma=0.2)
SWEEP = {
    "lag 1": PLAIN,
    "lag 2": PLAIN._replace(lag=2),
    "lag 2, 2 rounds a pool": PLAIN._replace(lag=2, inflight=2),
    "the same, 1 in 8 pools slow, 1 round in 500 hangs": PLAIN._replace(
        lag=2, inflight=2, hangs=0.002, slowness=3.0
    ),
}


def sweep(batch_seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return rows by the number of pools, where a step takes a batch of every pool."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, plain in SWEEP.items():
        rows[name] = []
        for pools in POOLS:
            slow = pools // 8 if plain.slowness > 1 else 0
            s = plain._replace(
                pools=pools, batches_per_step=pools, slow_pools=slow, batch_seconds=batch_seconds
            )
            rows[name].append(row(s, 60))
        shares = (r["steps_per_second"] / r["predicted"] for r in rows[name])
        say(f"{name}: " + " ".join(f"{share:.2f}" for share in shares))
    return rows


def main() -> None:
    parser = harness.command_line(__doc__, "docs")
    parser.add_argument("--without-ray", action="store_true", help="do not run anything on Ray")
    arguments = parser.parse_args()
    cost = (arguments.docs or Path("docs")) / "pipeline_benchmark.json"
    figures = (
        json.loads(cost.read_text()) if cost.exists() else {"driver_ms_per_batch": {"64": 0.5}}
    )
    batch_seconds = figures["driver_ms_per_batch"]["64"] / 1e3
    swept = sweep(batch_seconds)
    examples = {
        name: [row(example(model, gpus, batch_seconds)) for gpus in GPUS]
        for name, model in MODELS.items()
    }
    runs = {} if arguments.without_ray else validate(batch_seconds)
    text = tables(figures, examples, runs)
    say(text)
    if arguments.docs:
        draw(swept, arguments.docs / "scaling.png")
        content = {
            "command": "python -m benchmarks.scaling --docs docs",
            **harness.conditions("ray", "simpy"),
            "batch_ms": 1e3 * batch_seconds,
        }
        content |= {"sweep": swept, "examples": examples, "on_ray": runs}
        harness.write(content, arguments.docs / "scaling.json")
        if (page := arguments.docs / "scaling.md").exists():
            harness.insert(text, page, "benchmarks.scaling")


if __name__ == "__main__":
    main()
