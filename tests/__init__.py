import pytest

pytest.register_assert_rewrite("tests.helpers")  # its assertions tell as much as those of tests
