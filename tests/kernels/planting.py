"""Where tests may plant faults into kernels to see that other tests find them."""

import pytest
import torch

# On a GPU the tiles are others, so that some faults would not show, and a wrong address would end all tests after it.
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="faults are planted for the interpreter")
