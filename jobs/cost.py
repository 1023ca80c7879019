"""`raygpt cost` from a checkout, installed or not: what `ray job submit` and a Ray working_dir run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["cost", *sys.argv[1:]]))
