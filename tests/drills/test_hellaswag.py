"""HellaSwag beside lm-evaluation-harness itself on the same file, and by a real pretrained model."""

from __future__ import annotations


