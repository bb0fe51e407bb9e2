"""How alike images are by the directions in which their descriptors lie from words."""

import numpy as np
import pytest
import torch

from sekd_cli.image_likeness import Directions, Likeness, directions, learn_codebook


def alike(images: list[Directions]) -> np.ndarray:
    return Likeness(images).rows(0, len(images))


def test_a_word_holds_the_direction_of_its_descriptors() -> None:
    codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    found = directions(torch.tensor([[10.0, 2.0], [3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), codebook)
    assert found.words.tolist() == [0, 1]
    assert found.there.tolist() == [[76, 102], [0, 127]]  # 0.6 and 0.8, of (3, 0) and (0, 4); (0, 2)


def test_an_image_without_descriptors_or_with_others_is_like_none() -> None:
    codebook = torch.eye(3)
    none = [directions(descriptors, codebook) for descriptors in (torch.zeros(2, 3), torch.ones(5, 4))]
    assert [len(image.words) for image in none] == [0, 0]
    whole = directions(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)), codebook)
    expected = [[-1, 0, -1], [-1, 1, -1], [-1, 0, -1]]
    np.testing.assert_allclose(alike([none[0], whole, none[1]]), expected, atol=0.01)


def test_images_are_alike_by_directions_in_common_words_rare_ones_more() -> None:
    def image(**words: tuple[float, float]) -> Directions:
        there = np.array(list(words.values()), np.float64).reshape(-1, 2)
        return Directions(np.array([int(word[1:]) for word in words]), (127 * there).round().astype(np.int8))

    first = image(w0=(1, 0), w1=(0, 1), w3=(1, 0))
    second = image(w0=(0.6, 0.8), w1=(0.3, -0.954), w3=(0.1, 0.995))  # 0.6 in word 0; far apart, and at right angles
    third = image(w2=(1, 0))
    expected = 0.6**3 / 3
    found = alike([first, second, third])
    np.testing.assert_allclose(found, [[1, expected, 0], [expected, 1, 0], [0, 0, 1]], atol=0.02)
    fourth = image(w2=(1, 0), w3=(1, 0))  # has the first's word 3 and the third's word 2
    found = alike([first, second, third, fourth])
    of_two, of_three = np.log1p(4 / 2), np.log1p(4 / 3)  # images that have the word; the rarer is worth more
    np.testing.assert_allclose(found[3, 2], np.sqrt(of_two / (of_two + of_three)), atol=1e-3)
    of_both = np.sqrt((of_two + of_three) * (2 * of_two + of_three))
    np.testing.assert_allclose(found[3, 0], of_three / of_both, atol=1e-3)


@pytest.mark.parametrize("at_once", [1, 3])
def test_how_many_are_compared_at_once_changes_nothing(at_once: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(6, 4, generator=generator)
    images = [directions(torch.randn(count, 4, generator=generator), codebook) for count in (9, 0, 3, 20, 1, 7, 12)]
    likeness, count = Likeness(images), len(images)
    found = [likeness.rows(first, min(first + at_once, count)) for first in range(0, count, at_once)]
    np.testing.assert_allclose(np.concatenate(found), alike(images), atol=1e-6)


def test_no_images_are_like_none() -> None:
    assert alike([]).shape == (0, 0)


def test_the_codebook_finds_clusters_whatever_their_sizes() -> None:
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    noise = 0.01 * torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    descriptors = torch.cat((centres.repeat(200, 1), centres[2:].repeat(300, 1))) + noise
    found = learn_codebook(descriptors, words=8)
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.02
    assert torch.equal(found, learn_codebook(descriptors, words=8))
    assert learn_codebook(torch.zeros(0, 2)).shape == (0, 2)
    assert learn_codebook(torch.ones(100, 4), words=8).shape == (2, 4)
    assert learn_codebook(torch.ones(2, 4), words=8).shape == (1, 4)


def test_a_word_that_nothing_is_nearest_to_stays_where_it_was() -> None:
    descriptors = torch.tensor([[3.0, 4.0]]).repeat(100, 1)  # both words begin there, and the first takes all
    assert learn_codebook(descriptors, words=8).tolist() == [[3.0, 4.0]] * 2
