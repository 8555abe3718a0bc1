from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hybrid_runtime.faults.lost import explain_lost
from hybrid_runtime.telemetry.status import StatusFile
from tests.faults.test_hang import TWO

_OTHER = """
import os, sys
from pathlib import Path
from hybrid_runtime.telemetry.status import StatusFile
StatusFile(Path(sys.argv[1]), 1, (1,))
"""


def test_a_lost_link_is_told_from_a_lost_rank(tmp_path: Path) -> None:
    mine = StatusFile(tmp_path / "rank0", 0, (0,))
    other = StatusFile(tmp_path / "rank1", 1, (1,))
    link = "lost the connection to rank 1, which still runs: the link between them is lost"
    for action in ("0SEND_F3", "0RECV_B1", "0B0"):  # messages are posted beside compute, too
        mine.doing(action)
        assert explain_lost(tmp_path, TWO, 0) == (link, False)
    other.close()
    subprocess.run([sys.executable, "-c", _OTHER, str(tmp_path / "rank1")], check=True, timeout=60)
    mine.wait("barrier", "all")
    died = "lost the connection to rank 1, which failed or was killed before"
    assert explain_lost(tmp_path, TWO, 0) == (died, True)
    assert explain_lost(tmp_path, None, 0)[0] == died.replace("rank 1", "another rank")
