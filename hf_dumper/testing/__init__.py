"""For tests of ports: an assertion that two dumps agree, and a fault to plant."""

from hf_dumper.testing.aligned import assert_aligned
from hf_dumper.testing.faults import turned_rotary

__all__ = ["assert_aligned", "turned_rotary"]
