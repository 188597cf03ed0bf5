"""Maximum entropy: exponential families, their features, and which moments they can have."""
