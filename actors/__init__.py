"""Thin Ray shells over `pipeline`: they place its parts on processes, ask each for its work, and
bring back those that die.
"""
