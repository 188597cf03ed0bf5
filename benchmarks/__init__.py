"""Programs that make the figures of the README and the documentation.

Each runs as `python -m benchmarks.NAME`; `benchmarks.harness` has what they share.
"""
