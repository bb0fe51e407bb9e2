"""What the tests of kills share."""

import numpy as np

Arrays = dict[str, list[np.ndarray]]
"""The arrays of each group in a file, by the name of its image or its pair."""


def assert_among(some: Arrays, everything: Arrays) -> None:
    """What is in the one file is in the other, the same to the bit."""
    for name, values in some.items():
        for one, other in zip(values, everything[name], strict=True):
            np.testing.assert_array_equal(one, other)
