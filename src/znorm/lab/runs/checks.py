"""Records of a run as they must be for a page or a table: what was read is checked once, here."""

from __future__ import annotations

from typing import Any

from znorm.lab.numbers import is_count, is_number

__all__ = ["is_epoch", "why_no_result"]

_STATES = ("done", "diverged", "failed")


def why_no_result(content: Any, score: str) -> str | None:
    """The reason why something is not the result of a run, in a few words; None if it is one.

    Parameters
    ----------
    content : any
        As it was read from result.json.
    score : str
        The headline of the run's task, which a finished run has.
    """
    if not isinstance(content, dict) or content.get("status") not in _STATES:
        return f"no status among {', '.join(_STATES)}"
    metrics = content.get("metrics")
    if not isinstance(metrics, dict) or not all(map(is_number, metrics.values())):
        return "metrics are not finite numbers by name"
    hashes = content.get("hashes", {})
    if not isinstance(hashes, dict) or not all(isinstance(v, str) for v in hashes.values()):
        return "hashes are not texts by name"
    status = content["status"]
    if status == "failed" and not isinstance(content.get("error"), str):
        return "failed, and no error"
    if status == "diverged" and not is_count(content.get("diverged_step")):
        return "diverged, and no step"
    if status == "done":
        lacking = [key for key in ("train_loss", f"test_{score}") if key not in metrics]
        if lacking:
            return f"done, and no {lacking[0]}"
        if not is_number(content.get("seconds")):
            return "done, and no seconds"
    return None


def is_epoch(event: Any, score: str, epochs: int) -> bool:
    """Tell whether a line of events.jsonl is that of a finished epoch, of so many."""
    return (
        isinstance(event, dict)
        and event.get("event") == "epoch"
        and is_count(event.get("epoch"))
        and event["epoch"] <= epochs
        and all(is_number(event.get(key)) for key in ("train_loss", f"test_{score}"))
        and all(is_number(event[key]) for key in event if key not in ("event", "receipt"))
        and _is_receipt(event.get("receipt", {}))
    )


def _is_receipt(receipt: Any) -> bool:
    return isinstance(receipt, dict) and all(
        isinstance(values, dict)
        and all(map(is_number, values.values()))
        and {"norm_before", "norm_after"} <= values.keys()
        for values in receipt.values()
    )
