"""The life of a run, and work on runs that are done."""
