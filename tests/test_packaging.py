"""A wheel works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow("builds a wheel")
def test_a_wheel_carries_the_code_the_facts_and_the_template(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    flow = {"locate/figures/flow.css", "locate/figures/flow.js"}
    assert {"locate/facts.json", "edit/report/templates/report.html", *flow} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "data"))]
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import locate, edit, pathlib; print(pathlib.Path(locate.__file__).parent); "
        "print(len(locate.bundled_facts())); from edit.report.report import Environment, PackageLoader; "
        "print(bool(PackageLoader('edit.report').list_templates()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    folder, count, template = ran.stdout.split()[-3:]
    assert folder == str(site / "locate")
    assert int(count) >= 200
    assert template == "True"
