"""Statistics of a few runs, honest about how few they are."""

from __future__ import annotations

from znorm.lab.stats.intervals import Interval, t_interval

__all__ = ["Interval", "t_interval"]
