"""The memory and the utilisation of the GPUs on which a trial trained, as a row and as text."""

from __future__ import annotations

from tuner.results.json_rows import GpuJson
from tuner.storage.read.queries import TrialRow


def gpu_row(trial: TrialRow) -> GpuJson | None:
    """Return the use of a trial's GPUs; None if it was not recorded."""
    record = trial.record
    if record.gpu_peak_bytes is None and record.gpu_percent is None:
        return None
    return {
        "peak_bytes": record.gpu_peak_bytes,
        "mean_bytes": record.gpu_mean_bytes,
        "total_bytes": record.gpu_total_bytes,
        "percent": record.gpu_percent,
    }


def gpu_texts(row: GpuJson) -> dict[str, str]:
    """Return the use of a trial's GPUs as text, by name; without what is not known."""
    found: dict[str, str] = {}
    if row["peak_bytes"] is not None and row["mean_bytes"] is not None and row["total_bytes"] is not None:
        peak, mean, total = (f"{one / 1e9:.1f}" for one in (row["peak_bytes"], row["mean_bytes"], row["total_bytes"]))
        found["gpu memory"] = f"at most {peak} of {total} GB in use, on average {mean} GB"
    if row["percent"] is not None:
        found["gpu utilisation"] = f"{row['percent']:.0f} %"
    return found
