"""Anomalies: whether what a backup newly stored is unlike what its source's backups stored before, as after encryption by malware.

Median and median absolute deviation are used, which one odd backup among several, such as the first full one, does not move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

HISTORY = 20  # backups of the source that are compared with
MIN_HISTORY = 4  # fewer say nothing about what is usual
SPREADS = 6.0  # medians absolute deviations, scaled to a standard deviation, that a jump is away from the median
SCALE = 1.4826  # from median absolute deviation to standard deviation, for a normal distribution
MIN_CHANGE = 0.05  # of the source; a smaller jump is none, however regular the source was
MIN_RATIO = 0.15  # likewise of stored to new bytes
MIN_ENTROPY = 1.0  # likewise, in bits a byte
INCOMPRESSIBLE = 0.9  # stored to new bytes, from which on compression counts as failed
RANDOM = 7.0  # bits a byte in a sample of 1 KiB; encrypted data has about 7.8 there, text 4 to 5
REWRITTEN = 0.3  # of the source; so much incompressible data at once is odd even where all data is incompressible

Level = Literal["normal", "note", "warning"]


@dataclass(frozen=True, slots=True)
class Profile:
    """What one backup newly stored. Bytes; `entropy` in bits a byte, None where nothing was sampled."""

    bytes_total: int
    bytes_new: int
    bytes_stored: int
    entropy: float | None = None

    @property
    def change(self) -> float:
        """New bytes as a share of the source."""
        return self.bytes_new / self.bytes_total if self.bytes_total else 0.0

    @property
    def ratio(self) -> float:
        """Stored bytes to new bytes: 1 is incompressible."""
        return self.bytes_stored / self.bytes_new if self.bytes_new else 0.0


def judge(profile: Profile, history: Sequence[Profile]) -> Level:
    """Compare `profile` with the source's earlier ones, newest last.

    A `warning` needs far more change than usual *and* data that is as good as random where it was not before, or that makes up much of
    the source. A `note` is far more change alone. With fewer than MIN_HISTORY earlier backups everything is normal.
    """
    recent = history[-HISTORY:]
    if len(recent) < MIN_HISTORY or not _jumps(profile.change, [item.change for item in recent], MIN_CHANGE):
        return "normal"
    incompressible = profile.ratio >= INCOMPRESSIBLE and (profile.entropy is None or profile.entropy >= RANDOM)
    if not incompressible:
        return "note"
    odd = _content_jumps(profile, [item for item in recent if item.bytes_new])
    return "warning" if odd or profile.change >= REWRITTEN else "note"


def _content_jumps(profile: Profile, recent: Sequence[Profile]) -> bool:
    if _jumps(profile.ratio, [item.ratio for item in recent], MIN_RATIO):
        return True
    entropies = [item.entropy for item in recent if item.entropy is not None]
    return profile.entropy is not None and _jumps(profile.entropy, entropies, MIN_ENTROPY)


def _jumps(value: float, before: Sequence[float], least: float) -> bool:
    """Whether `value` is above what was usual by more than the usual spread explains, and by `least` at the least."""
    if not before:
        return False
    middle = median(before)
    spread = SCALE * median(abs(item - middle) for item in before)
    return value - middle > max(SPREADS * spread, least)
