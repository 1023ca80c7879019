"""The training job: a pure core (plan, step, schedule, loop) and the Ray Train shell around it."""
