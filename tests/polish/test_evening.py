"""A walk that is seen with noise: nearer to it afterwards, whatever the scale of what pictures tell."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.polish import evening
from threevp_nerfstudio.polish.evening import evened

N, D = 300, 12


@pytest.fixture(scope="module")
def walk() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, what is found, and what each picture tells; in some directions less than in others."""
    rng = np.random.default_rng(0)
    truth = np.cumsum(rng.normal(0, 0.05, (N, D)), 0)
    mixing = rng.normal(0, 1, (N, D, D)) * np.linspace(0.05, 0.2, D)
    covariance = mixing @ mixing.transpose(0, 2, 1) + 0.01 * np.eye(D)
    found = truth + np.einsum("nij,nj->ni", np.linalg.cholesky(covariance), rng.normal(0, 1, (N, D)))
    return truth, found, np.linalg.inv(covariance)


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_noise_goes_and_the_walk_stays(walk, scale: float):
    truth, found, information = walk
    even = evened(found, scale * information)
    assert np.sqrt(np.mean((even - truth) ** 2)) < 0.4 * np.sqrt(np.mean((found - truth) ** 2))
    assert np.allclose(even, evened(found, information))  # a common factor says nothing


def test_it_is_the_least_squares_of_noise_and_steps(walk):
    _, found, information = walk
    found, information = found[:40, :3], information[:40, :3, :3]
    even = evened(found, information)
    near, far = (np.mean((found[k:] - found[:-k]) ** 2, axis=0) for k in (1, evening.LAG))
    steps = np.maximum((far - near) / (evening.LAG - 1), evening.LEAST)
    told = evening._scaled(information, evening.LASTING * np.maximum((near - steps) / 2, evening.LEAST))
    difference = np.diff(np.eye(40), axis=0)
    A = np.kron(difference.T @ difference, np.diag(1 / steps))
    b = np.zeros(120)
    for i in range(40):
        A[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] += told[i]
        b[3 * i : 3 * i + 3] = told[i] @ found[i]
    np.testing.assert_allclose(even.ravel(), np.linalg.solve(A, b), atol=1e-8)


def test_pictures_that_tell_nothing_are_bridged_and_few_are_left_alone(walk):
    truth, found, information = walk
    found, information = found.copy(), information.copy()
    found[100:103], information[100:103] = 5.0, 0.0
    even = evened(found, information)
    assert np.abs(even[100:103] - truth[100:103]).max() < 1.0
    assert np.array_equal(evened(found[:10], information[:10]), found[:10])
    assert np.array_equal(evened(found, np.zeros_like(information)), found)
