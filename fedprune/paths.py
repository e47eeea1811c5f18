"""From a path that a user gives to a place on this machine, or one line of what is allowed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

ALLOWED = (
    "must be a path of this machine, in UTF-8, without backslashes and without ':/' (so no gs://,"
    " s3:// or file://)"
)
_INSIDE = Path(*["x" * 100] * 3)
"""longer than the names of what is written into a folder"""


class PathError(ValueError):
    """A path that cannot be used; the message is one line."""


def local(name: str, given: str | os.PathLike) -> Path:
    """A path as it is meant: ``~`` and ``~USER`` stand for home folders. Writes nothing.

    What a file system allows is allowed, except for what the libraries that write below it take for
    something else: TensorStore reads a backslash as a slash, Orbax takes ``:/`` for the end of a
    URL's scheme, and both need UTF-8.

    Args:
      name: of the flag or field, for the error.
      given: what stands there.

    Raises:
      PathError: it is empty, a URL, too long, or has characters that are not allowed; or it begins
        with the ``~`` of somebody who has no home folder.
    """
    text = os.fspath(given)
    try:
        path = Path(text).expanduser()
    except RuntimeError as e:
        raise PathError(
            f"{name}={text!r}: must begin with a home folder that is known, or give the whole path"
        ) from e
    whole = f"{path.absolute()}/"  # where this process runs is a part of it
    try:  # the C++ libraries encode names in UTF-8, Python as the locale says
        utf8 = os.fsencode(whole) == whole.encode()
    except UnicodeEncodeError:
        utf8 = False
    if not text or not utf8 or any(c in f"{text}{whole}" for c in ("\0", "\\", ":/")):
        raise PathError(f"{name}={text!r}: {ALLOWED}")
    try:
        (path / _INSIDE).lstat()
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise PathError(f"{name}={text!r}: must be shorter for this file system") from e
    return path
