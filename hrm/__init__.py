"""What the hardware allows and what will happen: hierarchical roofline model, schedules, devices, profiler.

The names below are the public ones; they load neither torch nor matplotlib. `hrm.predict` is the function and stays so:
the module of that name is imported here, once, before the function takes its place.
"""

from hrm.compare import compare_runs, load_run_report
from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile, load_profile
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.plan import Plan, load_plan, save_plan
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.predict import Prediction, predict
from hrm.roofline import attainable, ridge_point, turning_points
from hrm.workload import Workload

__all__ = [
    "DType",
    "Fidelity",
    "HardwareProfile",
    "HrmError",
    "ModelSpec",
    "Plan",
    "Policy",
    "Prediction",
    "Processor",
    "ScheduleName",
    "Staging",
    "Workload",
    "attainable",
    "compare_runs",
    "load_model",
    "load_plan",
    "load_profile",
    "load_run_report",
    "predict",
    "ridge_point",
    "save_plan",
    "turning_points",
]
