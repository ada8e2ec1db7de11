"""The statistics of the reports under one name. Which of them answers which question: docs/statistics.md."""

from reports.attempts import maj_at_k, maj_band, pass_at_k, pass_band
from reports.bootstrap import improvement, improvement_interval, iqm, iqm_interval, profile, two_level
from reports.frontier import envelope, envelope_area, hypervolume
from reports.inference import (
    Interval,
    clustered,
    detectable,
    holm,
    holm_confidence,
    paired,
    sign_flip,
    t_interval,
    t_test,
    tost,
    wilson,
)

__all__ = [
    "Interval",
    "clustered",
    "detectable",
    "envelope",
    "envelope_area",
    "holm",
    "holm_confidence",
    "hypervolume",
    "improvement",
    "improvement_interval",
    "iqm",
    "iqm_interval",
    "maj_at_k",
    "maj_band",
    "paired",
    "pass_at_k",
    "pass_band",
    "profile",
    "sign_flip",
    "t_interval",
    "t_test",
    "tost",
    "two_level",
    "wilson",
]
