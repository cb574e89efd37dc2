"""Copies by address: every length and alignment, and not a byte beyond."""

import numpy as np
import pytest

from hf_dumper.capture.copying import large_copier, memmove
from hf_dumper.capture.taps import COMPILED

BEYOND = 64


@pytest.fixture(params=["few", "plain", "compiled"])
def copy(request):
    if request.param == "few":
        return memmove
    if request.param == "compiled" and not COMPILED:
        pytest.skip("the compiled hooks are not built")
    return large_copier(compiled=request.param == "compiled")


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 200, 4096, 4097, (1 << 20) + 77])
@pytest.mark.parametrize("start", [0, 1, 15, 16, 63])
@pytest.mark.parametrize("shift", [0, 7])
def test_all_bytes_are_copied_and_no_others(copy, length, start, shift):
    source = np.random.default_rng(length).integers(1, 255, length + shift + 1).astype(np.uint8)
    target = np.zeros(start + length + BEYOND, np.uint8)
    copy(target.ctypes.data + start, source.ctypes.data + shift, length)
    assert (target[start : start + length] == source[shift : shift + length]).all()
    assert not target[:start].any()
    assert not target[start + length :].any()


def test_what_is_no_address_is_refused():
    if not COMPILED:
        pytest.skip("the compiled hooks are not built")
    with pytest.raises(TypeError):
        large_copier(compiled=True)("a", 0, 1)
    with pytest.raises(TypeError):
        large_copier(compiled=True)(0, 1)
