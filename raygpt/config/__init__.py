"""The config tree of every job: a module per section, one sentence per key.

`settings` fills it from defaults, a YAML file, the environment and the command line; `checks` holds what takes more
than one section to see, `fixed` what may not change on a resume, `job` what a job declares. Modules below take plain
arguments, not these classes.
"""

from raygpt.config.compare import Compare
from raygpt.config.data import Data
from raygpt.config.eval import Eval
from raygpt.config.export import Export
from raygpt.config.model import Model
from raygpt.config.optim import Optim
from raygpt.config.plan import Plan
from raygpt.config.prepare import Prepare
from raygpt.config.run import Run
from raygpt.config.sample import Sample
from raygpt.config.scale import Scale
from raygpt.config.section import Section
from raygpt.config.task import Task
from raygpt.config.track import Track
from raygpt.config.train import Train
from raygpt.config.tree import Config
from raygpt.config.tune import Tune

__all__ = [
    "Compare",
    "Config",
    "Data",
    "Eval",
    "Export",
    "Model",
    "Optim",
    "Plan",
    "Prepare",
    "Run",
    "Sample",
    "Scale",
    "Section",
    "Task",
    "Track",
    "Train",
    "Tune",
]
