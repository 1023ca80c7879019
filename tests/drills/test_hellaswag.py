"""HellaSwag beside lm-evaluation-harness itself on the same file, and by a real pretrained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.model.export import save_pretrained
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.scoring import hellaswag
from raygpt.scoring.likelihood import ModelScorer
