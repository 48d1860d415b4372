"""The GPUs that a process started now would see, found without CUDA being initialised in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")
_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
_BY_TORCH = """
import torch
for i in range(torch.cuda.device_count()):
    p = torch.cuda.get_device_properties(i)
    print(p.total_memory, p.name)
"""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU."""

    name: str
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_bytes / 1e9:.0f} GB)"


def visible_devices() -> list[Device]:
    """The CUDA devices that are there and that CUDA_VISIBLE_DEVICES lets be seen, in its order.

    By nvidia-smi (no import of torch); where that is missing or a part of a GPU (MIG) is chosen, by torch in a child.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and not chosen.strip():
        return []
    if chosen and "MIG-" in chosen:
        return _by_torch()
    if shutil.which("nvidia-smi") is None:
        return _by_torch() if DRIVER.is_dir() else []
    listed = _output("nvidia-smi", *_QUERY)
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.count(",") == 3]
    if any(not memory.isdigit() for *_, memory in rows):
        return _by_torch()  # a GPU whose memory is that of the machine
    found = {index: (uuid, Device(name, int(memory) * 2**20)) for index, uuid, name, memory in rows}
    if chosen is None:
        return [device for _, device in found.values()]
    seen = []
    for wanted in (c.strip() for c in chosen.split(",")):
        match = [
            d for i, (uuid, d) in found.items() if wanted == i or (wanted[:4] == "GPU-" and uuid.startswith(wanted))
        ]
        if not match:
            break  # CUDA itself stops at the first that is not there
        seen.append(match[0])
    return seen


def _by_torch() -> list[Device]:
    lines = _output(sys.executable, "-c", _BY_TORCH).splitlines()
    return [Device(name, int(memory)) for memory, _, name in (line.partition(" ") for line in lines)]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
