"""Makes the virtual environment with the real hermes-agent: `python hermes_environment.py FOLDER`.

Once per checkout and version, by whoever comes first; others wait at the lock.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = ("hermes-agent==0.19.*", "msgspec>=0.22,<0.23")
FOLDER = (Path(__file__).parents[2] / ".cache").resolve() / "hermes-venv"


class CannotInstall(Exception):
    """What pip said last."""


def environment(folder: Path = FOLDER) -> Path:
    """→ the environment's python. Raises CannotInstall."""
    python, stamp = folder / "bin" / "python", folder / "hermes.stamp"
    wanted = "\n".join((str(folder), sys.version, *REQUIREMENTS))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == wanted):
            venv.create(folder, clear=True, with_pip=True)
            done = subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS],
                check=False,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise CannotInstall((done.stderr.strip().splitlines() or ["pip said nothing"])[-1])
            stamp.write_text(wanted)
        stamp.touch()  # newer than this file, for make
        return python


if __name__ == "__main__":
    try:
        print(environment(Path(sys.argv[1]).absolute() if sys.argv[1:] else FOLDER))
    except CannotInstall as error:
        print(f"hermes-agent cannot be installed, so its tests will be skipped: {error}", file=sys.stderr)
