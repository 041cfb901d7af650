"""What the hardware allows and what will happen: hierarchical roofline model, schedules, devices, profiler."""
