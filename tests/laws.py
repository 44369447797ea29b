"""Load curves with a known end: what is planted is known, so what is found can be judged."""

from __future__ import annotations

import numpy as np

from study.stats import Floats

LEVELS = np.array([1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128.0])  # steps of sqrt(2)
STEP = np.sqrt(2)
GRID = np.geomspace(LEVELS[0], LEVELS[-1], 20_000)


def law(levels: Floats, lam: float = 50.0, sigma: float = 0.02, kappa: float = 4e-4) -> Floats:
    return np.asarray(
        lam * levels / (1 + sigma * (levels - 1) + kappa * levels * (levels - 1)), dtype=np.float64
    )


def hard_cap(levels: Floats, cap: float = 1000.0) -> Floats:
    """50 tokens/s for each request in flight until the cap, which level 20 meets."""
    return np.minimum(50 * levels, cap)


def noisy(tok_s: Floats, rng: np.random.Generator, sd: float = 0.01) -> Floats:
    return np.asarray(tok_s * np.exp(rng.normal(0, sd, tok_s.shape)))


def true_knee(sigma: float, kappa: float, share: float = 0.95) -> float:
    fitted = law(GRID, 1.0, sigma, kappa)
    return float(GRID[np.argmax(fitted >= share * fitted.max())])
