import pytest

pytest.register_assert_rewrite("tests.commands")  # its assertions tell as much as those of tests
