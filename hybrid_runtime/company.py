"""Who kept a machine busy while something was measured on it: written into rehearsal.json and calibration.json."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Company(BaseModel):
    """Companions (`lone/company.py`).

    Attributes:
        processes: how many worked beside the one that was measured.
        why: so many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: int = 0
    why: str = "nobody was asked for"

    def __str__(self) -> str:
        number = f"{self.processes} companion{'s' if self.processes > 1 else ''}" if self.processes else "none"
        return f"{number} ({self.why})"
