"""Everything in a federation directory belongs to the service's user alone: tokens' hashes, updates, the model.

It knows modes and files; it does not know what is in them.
"""

import contextlib
import os
import stat
from pathlib import Path


def keep_private(directory: Path) -> None:
    """Set 0700 on the directory and those in it, 0600 on the files, and have this process make new ones so.

    What belongs to another user, and what a link points to, stays as it is.
    """
    os.umask(0o077)
    _restrict(directory, 0o700)
    for place, directories, files in os.walk(directory):
        for name in directories:
            _restrict(Path(place, name), 0o700)
        for name in files:
            _restrict(Path(place, name), 0o600)


def _restrict(path: Path, mode: int) -> None:
    with contextlib.suppress(OSError):  # it is another user's, or gone already
        found = path.lstat()
        if (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) and stat.S_IMODE(found.st_mode) != mode:
            path.chmod(mode)
