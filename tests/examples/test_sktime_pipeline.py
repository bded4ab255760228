"""The example in sktime, hardly trained."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "sktime_pipeline.py"


@pytest.mark.slow
def test_it_draws_its_picture_and_prints_no_warning(tmp_path):
    command = [sys.executable, str(SCRIPT), "--updates", "1", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sktime_airline.png").stat().st_size > 0
    assert "Warning" not in done.stdout + done.stderr
