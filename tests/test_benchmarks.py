"""What the benchmarks compare with computes the same as the library."""

import literal  # from benchmarks/
import pytest
import torch

from nca_lib.diff_nca import DiffNCA
from nca_lib.fourier import FourierDiffNCA


@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
def test_the_literal_computation_equals_the_librarys(kind: type[DiffNCA], position: bool) -> None:
    torch.manual_seed(0)
    options = {"frequencies": 4} if kind is FourierDiffNCA else {}
    model = kind(10, 16, 3, update_probability=1.0, position=position, **options)
    noisy, time = torch.randn(2, 3, 12, 14), torch.full((2,), 0.3)
    with torch.no_grad():
        expected = literal.call(model, noisy, time)
        torch.testing.assert_close(model(noisy, time), expected, rtol=1e-4, atol=1e-5)
        model.fast = False
        torch.testing.assert_close(model(noisy, time), expected, rtol=1e-4, atol=1e-5)
