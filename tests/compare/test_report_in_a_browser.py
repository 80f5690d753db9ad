"""The page in headless Chromium, where there is one: nothing on the console, nothing beyond the edges, on a wide screen and a narrow one."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from test_comparison_report import made_up

from engines.compare.report import render

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>
const beyond = text => { const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal; return box.x < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 2; };
const over = (one, other) => { const a = one.getBoundingClientRect(), b = other.getBoundingClientRect(); return a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3; };
const clashes = picture => { const all = [...picture.querySelectorAll('text')]; return all.flatMap((one, at) => all.slice(at + 1).filter(other => over(one, other)).map(other => one.textContent + ' | ' + other.textContent)); };
const found = {wide: document.documentElement.scrollWidth - document.documentElement.clientWidth, beyond: [...document.querySelectorAll('svg text')].filter(beyond).map(text => text.textContent), clashes: [...document.querySelectorAll('svg')].flatMap(clashes)};
document.body.setAttribute('data-found', JSON.stringify(found));
</script>"""
"""In the test's copy alone: what sticks out of the page, or out of its picture, or lies upon other words."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")


@pytest.mark.parametrize("width", [1280, 480])
@pytest.mark.parametrize("layers, lengths, spoil", [(4, [12, 20], lambda values: values), (61, [512] * 8, lambda values: values), (4, [30], lambda values: np.full_like(values, np.nan))], ids=["small", "large", "not a number"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_page_opens_without_complaint_and_everything_is_in_sight(tmp_path, width, layers, lengths, spoil):
    page = tmp_path / "report.html"
    page.write_text(render(made_up(layers, lengths, spoil)) + MEASURE)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", page.as_uri()]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert ":CONSOLE" not in outcome.stderr
    found = json.loads(re.search(r'data-found="([^"]*)"', outcome.stdout)[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert found == {"wide": 0, "beyond": [], "clashes": []}
