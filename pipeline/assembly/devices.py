"""The device that a configuration names, and whether torch has it."""

from __future__ import annotations

import torch

from pipeline.common.errors import ConfigError


def check_device(device: str) -> None:
    """Raises `ConfigError` where torch does not see the GPU that `device` (cpu, cuda, cuda:N)
    names on this machine.
    """
    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        remedy = f"torch {torch.__version__} sees no GPU on this machine; use cpu"
        raise ConfigError("device", device, remedy)
    if int(device.partition(":")[2] or 0) >= count:
        remedy = f"there are {count} GPUs on this machine; use cuda:0 to cuda:{count - 1}"
        raise ConfigError("device", device, remedy)
