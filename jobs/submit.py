"""`raygpt submit` from a checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["submit", *sys.argv[1:]]))
