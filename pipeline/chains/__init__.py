"""Markov chains: of one law, of one pool, and the Arrow form of what they send."""
