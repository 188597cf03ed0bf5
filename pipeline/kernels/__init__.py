"""MCMC kernels: pairs of functions `init` and `step` on named tuples of tensors."""
