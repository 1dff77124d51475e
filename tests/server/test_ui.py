"""What a browser shows of a run, in both faces of Prefect's UI."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_api import PrefectAPI
    from prefect_processes import Home
    from steering import Steering

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
]


@pytest.mark.parametrize("face", ["", "/v2"], ids=["V1", "V2"])
def test_the_summary_is_a_page(
    face: str, api: PrefectAPI, server: Home, steering: Callable[[int], Steering], tmp_path: Path
) -> None:
    steered = steering(12)
    steered.fail(7)
    run_id = f"seen{face.replace('/', '-')}"
    server.local_run(steered, run_id=run_id).result()
    (flow_run,) = api.post("/flow_runs/filter", {"flow_runs": {"name": {"any_": [f"steered-{run_id}"]}}})
    summary = api.artifacts(flow_run["id"])["markdown"]

    page = _text_of(f"{api.url.removesuffix('/api')}{face}/artifacts/artifact/{summary['id']}", tmp_path)

    assert "steered: 11 of 12 lines completed, 1 failed" in page
    assert "12: 11 completed, 1 failed, 0 canceled, 0 not started" in page
    assert f"batchflow resume {run_id}" in page
    assert "line 7 was told to fail" in page


def _text_of(url: str, profile: Path) -> str:
    """The text of a page after its scripts have run; the browser reaches this machine only."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={profile / 'chromium'}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=20000",
        "--dump-dom",
        url,
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    words = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", dom, flags=re.DOTALL))
    # Invisible, against links in the text of rows.
    return " ".join(words.replace("\u2060", "").split())
