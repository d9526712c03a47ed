"""What every test shares."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def same_numbers_in_any_order(request):
    """A file's generator starts anew for each test: workers run them in different orders."""
    for name in ("rng", "RNG"):
        generator = getattr(getattr(request, "module", None), name, None)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = np.random.default_rng(0).bit_generator.state
