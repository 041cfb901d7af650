"""The profiler: measures the roofs and ceilings of a machine through `hrm.device`."""
