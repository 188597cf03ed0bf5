"""Seconds that tests wait for what should come. They only tell a hang from a slow machine, so they
are many times what a quiet machine takes.
"""

PATIENCE = 300.0
