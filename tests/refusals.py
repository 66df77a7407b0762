import pytest

from polychrome.engine.errors import UserError


def refusal(call, *arguments, **options):
    """Return the one line with which a call refuses what its user gave."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
