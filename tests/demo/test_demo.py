"""`python -m vipl demo`: its printed numbers against what is known."""

import re
import subprocess
import sys

import jax
import pytest

from vipl.__main__ import main

LINE = re.compile(r"^  (ELBO|IWELBO\(5\)) +(\S+) +(-[\d.]+) ± +([\d.]+) +(-[\d.]+) +[\d.]+$", re.MULTILINE)
IMAGES = re.compile(r"^  (before|after).* (-[\d.]+) ± +([\d.]+) +(-[\d.]+) ± +([\d.]+)$", re.MULTILINE)
LOG_EVIDENCE = -5.3232


@pytest.mark.oldest
def test_the_demo_reaches_what_is_known(tmp_path, capsys):
    for package in ("matplotlib", "sklearn", "flax"):
        pytest.importorskip(package)
    with jax.enable_x64(False):
        assert main(["demo", "--short", "--out", str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    lines = LINE.findall(text)
    assert [estimator for _, estimator, *_ in lines] == ["Reparam", "Score(LeaveOneOut)", "MeasureValued", "Reparam"]
    assert [name for name, *_ in lines] == ["ELBO", "ELBO", "ELBO", "IWELBO(5)"]
    for reached, se, best in (map(float, numbers) for _, _, *numbers in lines):
        assert best - 0.05 < reached < best + 5 * se
        assert reached < LOG_EVIDENCE
    before, after = ([float(x) for x in numbers] for _, *numbers in IMAGES.findall(text))
    # 64 pixels of 17 values each: a uniform guess has 64 log 17 = 181 nats.
    assert before[0] < -181 < -110 < after[0] < after[2] < -70
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"cone.png", "digits.png"}


def test_a_missing_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "the demo needs matplotlib, scikit-learn: pip install 'vipl[demo]'\n"


def test_without_a_command_help_is_printed(capsys):
    assert main([]) == 0
    assert "python -m vipl" in capsys.readouterr().out


def test_what_import_vipl_reaches():
    """In a process of its own: here other tests have imported everything."""
    code = "import sys, vipl; print(vipl.__version__, vipl.testing.assert_unbiased, vipl.interop.flax.functional)"
    code += "; assert 'flax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
