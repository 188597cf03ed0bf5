"""Figures of the README and the documentation, from the programs themselves: `python -m
benchmarks.NAME`.
"""
