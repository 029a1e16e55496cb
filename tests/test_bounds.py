import pytest
from packaging.requirements import Requirement

from tests import bounds


def test_every_dependency_of_a_product_has_both_bounds() -> None:
    assert bounds.pins("newest", bounds.requirements())
    with pytest.raises(ValueError, match="needs a lower and an upper bound"):
        bounds.pins("newest", [Requirement("h11>=0.16")])


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    wanted = [Requirement(text) for text in ("a>=1.9,<2", "a>=1.10,<2", "b>=3,<4")]
    assert bounds.pins("lowest", wanted) == ["a==1.10", "b==3"]
    assert bounds.pins("newest", wanted) == ["a<2,>=1.10", "a<2,>=1.9", "b<4,>=3"]
