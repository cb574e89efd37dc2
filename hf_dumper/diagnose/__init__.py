"""What can be found out by running a model more than once."""

from hf_dumper.diagnose.predictions import check_predictable, predict_prompt, predict_run
from hf_dumper.diagnose.selfcheck import SelfCheck, self_check

__all__ = ["SelfCheck", "check_predictable", "predict_prompt", "predict_run", "self_check"]
