"""``python -m resmlp_mt`` prints the folder to give to ``--user-dir``."""

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).resolve().parent)
