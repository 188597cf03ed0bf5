"""Energies E(x; theta), `[N, ...] -> [N]`, in nats."""
