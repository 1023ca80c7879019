#!/bin/sh
# Everything that a GPU lent for a few minutes should answer, in one command of at most seven minutes:
#
#     tests/gpu/once.sh
#
# first_contact.py, then the training step's speed as it is trained and rung by rung (GPT-2 124M, context 1024), then
# GPT-2 XL. Needs Python with torch and numpy; XL within 16 GB needs DeepSpeed and is left out, which the summary says,
# without it.
#
#     OUT                   where one JSON file and one log per part go, and summary.md (benchmarks/gpu)
#     RAYGPT_ONCE_SECONDS   all of it (410); what does not fit any more is left out, what is done is kept
#     RAYGPT_ONCE_TOY=1     the same on a CPU at toy size, to see that it works
#     PYTHON                the interpreter (python3)
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" tests/gpu/once.py
