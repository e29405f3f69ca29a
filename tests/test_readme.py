"""The README's example runs as it stands there, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_trains_and_says_where_the_best_checkpoint_is(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    best = Path(run.stdout.splitlines()[-1])
    assert best.parent == tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    assert best.exists()


def test_the_two_commands_come_first():
    assert re.findall(r"```sh\n(make demo).*\n(make test).*\n```", README) == [("make demo", "make test")]
    assert README.index("make demo") < README.index("## ")


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 4
    assert [link for link in links if not (ROOT / link).exists()] == []
