"""Positives: rows of data in a seeded order that can be taken up again where it stopped."""
