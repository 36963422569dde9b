"""What the command tells its user besides its results."""

import sys


def warn(message: str) -> None:
    """Print a warning of the command."""
    print(f"prepare: warning: {message}", file=sys.stderr)
