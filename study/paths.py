"""Where things lie. Nothing else in the project builds a path from the working directory.

In a clone they lie in it; where the package was installed without one, in the working directory.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HOME = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()
ROOT = Path(os.environ.get("STUDY_ROOT", HOME))  # tests point it at a scratch folder

NOTEBOOKS = PACKAGE.parent / "notebooks"  # sources, stored without outputs
MODELS = PACKAGE / "models"
HARDWARE = PACKAGE / "hardware"
PROFILES = PACKAGE / "profiles"

DATA = ROOT / "data"
RAW = DATA / "raw"  # measured here, never edited
DERIVED = DATA / "derived"  # rebuilt from raw at any time
FIGURES = ROOT / "figures"
REPORT = ROOT / "report"
BUILD = ROOT / "build"  # executed notebooks
CACHE = ROOT / ".cache"  # synthetic models, the engine's compile caches
