"""A launch on GPUs that do not exist, whose figures a fake of NVIDIA's library tells."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[2]
GB = 10**9
GPUS = [
    {"uuid": f"GPU-{at}", "total": 141 * GB, "used": used * GB, "gpu": percent}
    for at, (used, percent) in enumerate([(90, 100), (80, 100), (10, 20), (30, 60)])
]


@pytest.mark.slow
def test_trials_of_a_worker_with_two_of_four_gpus_have_the_figures_of_these(
    tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\nfor gpu in 0 1 2 3; do echo $gpu; done\n")
    (tools / "nvidia-smi").chmod(0o755)
    tuner, paths = tuner_on_sqlite, [str(TESTS / "data" / "nvml"), str(TESTS), os.environ.get("PYTHONPATH", "")]
    about = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FAKE_NVML": json.dumps(GPUS),
    }
    shape = {"TINY_TRIALS": "1", "TINY_EPOCHS": "4", "TINY_PAUSE_S": "0.5"}

    done = tuner.run("launch", "tiny.py", "--devices", "2,3", "--workers", "1", **about, **shape)

    assert done.returncode == 0, done.stderr
    shown = tuner.rows("show", "tiny", "0")
    assert shown["ran_with"]["devices"] == "gpu 2,3"
    assert shown["gpu"] == {
        "peak_bytes": 30 * GB, "mean_bytes": 20 * GB, "total_bytes": 141 * GB, "percent": 40.0,
    }  # fmt: skip
    text = tuner.run_here("show", "tiny", "0").stdout
    assert "gpu memory           at most 30.0 of 141.0 GB in use, on average 20.0 GB" in text
    assert (
        "gpu_percent" in tuner.run_here("export", "tiny", "trials.csv").stderr + (tmp_path / "trials.csv").read_text()
    )

    broken = json.dumps([{**one, "error": "NVMLError_GpuIsLost"} for one in GPUS])
    done = tuner.run(
        "launch", "tiny.py", "--workers", "1", **{**about, **shape, "FAKE_NVML": broken, "TINY_TRIALS": "2"}
    )
    assert done.returncode == 0, done.stderr
    said = "memory and utilisation of the GPUs are not recorded any more: GPU is lost"
    assert [line.partition("] ")[2] for line in done.stderr.splitlines() if "GPU" in line] == [said]
    assert tuner.rows("show", "tiny", "1")["gpu"] is None
