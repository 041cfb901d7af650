"""Running a plan: the engine, its kernels, checkpoints and prompts."""
