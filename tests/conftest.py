"""What every test shares."""

import numpy as np
import pytest
from browser import CHROMIUM, FLAGS


@pytest.fixture(autouse=True)
def same_numbers_in_any_order(request):
    """A file's generator starts anew for each test: workers run them in different orders."""
    for name in ("rng", "RNG"):
        generator = getattr(getattr(request, "module", None), name, None)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
