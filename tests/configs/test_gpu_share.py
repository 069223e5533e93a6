"""What the tests that need a GPU ask of it, without one: a single card must do."""

from configs import load_config
from configs.placement import compare, placement
from tests.gpu.test_quickstart import SETTINGS


def test_the_quickstarts_roles_fit_on_one_card():
    assert compare(placement(load_config("quickstart", SETTINGS)), {"CPU": 2, "GPU": 1}) == []
