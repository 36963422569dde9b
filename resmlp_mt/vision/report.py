"""Writes reports of the evaluation commands as JSON, with the machine of their measurements."""

import json
from pathlib import Path
from typing import Any

import torch

from resmlp_mt.files import output_file
from resmlp_mt.machine import processor


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write a report; the file appears complete or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with output_file(path) as temporary:
        text = json.dumps(report, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def measured_on(device: torch.device) -> dict[str, Any]:
    """The machine and versions that a time was measured with."""
    return {
        "machine": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
