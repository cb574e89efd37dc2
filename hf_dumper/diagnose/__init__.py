"""What can be found out by running a model more than once."""

from hf_dumper.diagnose.selfcheck import SelfCheck, self_check

__all__ = ["SelfCheck", "self_check"]
