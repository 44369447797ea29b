"""Whether a difference is shown, or shown to be none, or neither: two one-sided tests.

An interval that holds 1 does not say that two arms are equal; few launches make any interval hold
it. "No difference" is a claim of its own, and needs a margin that was stated beforehand: at most
so large is what counts as none. It is shown when the ratio is significantly above the lower *and*
significantly below the upper limit (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987), which is
when its 90 % interval lies inside. Both one-sided tests must reject, so their level of 5 % needs
no adjustment for being two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from study.errors import StudyError
from study.interval import Interval, bonferroni
from study.stats import Comparison, Contrast

MARGIN = 0.05  # the largest difference that counts as none, as a share; stated before measuring

DIFFERENT = "different"
EQUIVALENT = "equivalent"
SMALL = "different, but within the margin"
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Equivalence:
    """What a ratio says about a margin.

    `within` is the interval that decides: its limits lie inside `lowest` to `highest` exactly when
    `p_value` is below the level of the tests. `verdict` is one of `DIFFERENT`, `EQUIVALENT`,
    `SMALL` (both of these), `UNDECIDED` (neither).
    """

    within: Interval
    p_value: float
    margin: float
    verdict: str

    @property
    def lowest(self) -> float:
        """The smallest ratio that counts as no difference: 1 / (1 + margin)."""
        return 1 / (1 + self.margin)

    @property
    def highest(self) -> float:
        """The largest ratio that counts as no difference: 1 + margin."""
        return 1 + self.margin


def equivalent(compared: Comparison | Contrast, margin: float = MARGIN) -> Equivalence:
    """Two one-sided t tests of "the ratio lies between 1 / (1 + margin) and 1 + margin".

    `compared` is a ratio inside blocks (a contrast must be one of logs). Level and comparisons
    are those of its own interval: with 95 % and three comparisons each test has the level
    5 % / 3, and `within` the confidence 90 % for all three together. The limits are symmetric on
    the log scale, so that exchanging the arms changes nothing. With one block, or none, nothing
    is decided. StudyError when the margin is not positive, or the contrast is no ratio.
    """
    found = compared.contrast if isinstance(compared, Comparison) else compared
    if not 0 < margin < np.inf:
        raise StudyError(f"margin must be a positive share, like 0.05; it was {margin}.")
    if found.effect.statistic != "ratio":
        raise StudyError(
            "Equivalence within a share is asked of a ratio; this was a contrast of plain values. "
            "Use log=True for it."
        )
    limit, level = np.log1p(margin), 1 - found.effect.confidence
    one_sided = max(found.estimate.p_above(-limit), found.estimate.p_below(limit))
    p_value = float(np.minimum(1, found.comparisons * one_sided))  # NaN stays
    within = found.estimate.interval(1 - 2 * level, found.comparisons)
    method = "interval of two one-sided t tests" + bonferroni(found.comparisons)
    within = replace(within, method=method, unit="blocks").exponentiated("ratio")
    verdict = _verdict(different=found.p_value < level, small=p_value < level)
    return Equivalence(within, p_value, margin, verdict)


def _verdict(different: bool, small: bool) -> str:
    if different:
        return SMALL if small else DIFFERENT
    return EQUIVALENT if small else UNDECIDED
