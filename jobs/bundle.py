"""The residuals of bundle adjustment, on a scene made from a seed.

A camera is 9 numbers, as in "Bundle adjustment in the large" (S. Agarwal, N. Snavely, S. Seitz, R. Szeliski,
ECCV 2010): a rotation w (Rodrigues: about w, by |w|), a translation t, the focal length f, and two
coefficients k of radial distortion. It sees a point X at

    p = -(R X + t)[:2] / (R X + t)[2],    f (1 + k₁ |p|² + k₂ |p|⁴) p    pixels from the middle of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import lsqr
from torch import Tensor

from jacjobs import Problem, SparseDataset

VIEWS = 6
"""How many cameras see a point."""
NOISE = 0.5
"""Of the observations, in pixels."""


class Scene(NamedTuple):
    """
    cameras:   (cameras, 9), rotation, translation, focal length, distortion: near the truth.
    points:    (points, 3), likewise.
    who, what: of each observation, which camera saw which point.
    seen:      (observations, 2), where: in pixels, as the true scene gives them, with noise.
    """

    cameras: np.ndarray
    points: np.ndarray
    who: np.ndarray
    what: np.ndarray
    seen: np.ndarray


def problem(cameras: int = 200, points: int = 16_667) -> Problem:
    """Two residuals an observation: m = 12 points, n = 9 cameras + 3 points."""
    scene = make(cameras, points)
    who, what, seen = (torch.from_numpy(array) for array in (scene.who, scene.what, scene.seen))

    def residual(cameras: Tensor, points: Tensor) -> Tensor:
        return project(cameras[who], points[what]) - seen

    return Problem(
        residual, (torch.from_numpy(scene.cameras), torch.from_numpy(scene.points)), argnums=(0, 1)
    )


def project(camera: Tensor, point: Tensor) -> Tensor:
    """Where cameras (k, 9) see points (k, 3): (k, 2) pixels."""
    rotation, translation, focal, k1, k2 = camera.split([3, 3, 1, 1, 1], 1)
    angle = rotation.norm(dim=1, keepdim=True)
    axis = rotation / angle
    along = (axis * point).sum(1, keepdim=True)
    cosine = angle.cos()
    turned = point * cosine + axis.cross(point, 1) * angle.sin() + axis * along * (1 - cosine)
    place = turned + translation
    flat = -place[:, :2] / place[:, 2:]
    squared = flat.square().sum(1, keepdim=True)
    return focal * (1 + k1 * squared + k2 * squared.square()) * flat


def make(cameras: int, points: int) -> Scene:
    """Cameras on a circle around a cloud of points, each looking at its middle; both are then displaced."""
    draw = np.random.default_rng(0)
    true_points = draw.normal(size=(points, 3))
    around = 2 * np.pi * np.arange(cameras) / cameras
    # Turned about a vertical axis, and a little about others: never by 0 or by π, where w is not smooth.
    turns = np.stack(
        [draw.normal(0, 0.1, cameras), np.pi * 0.9 * np.cos(around), draw.normal(0, 0.1, cameras)]
    )
    turns[1] += np.where(np.abs(turns[1]) < 0.2, 0.3, 0)
    true_cameras = np.hstack(
        [
            turns.T,
            np.array([0.0, 0.0, -10.0]) + draw.normal(0, 0.1, (cameras, 3)),
            draw.uniform(450, 550, (cameras, 1)),
            draw.normal(0, [0.05, 0.01], (cameras, 2)),
        ]
    )
    who = np.concatenate([draw.choice(cameras, VIEWS, replace=False) for _ in range(points)])
    what = np.repeat(np.arange(points), VIEWS)
    seen = project(torch.from_numpy(true_cameras[who]), torch.from_numpy(true_points[what])).numpy()
    return Scene(
        true_cameras + draw.normal(0, [0.01] * 3 + [0.05] * 3 + [5, 0.005, 0.001], (cameras, 9)),
        true_points + draw.normal(0, 0.02, (points, 3)),
        who,
        what,
        seen + draw.normal(0, NOISE, seen.shape),
    )


# -- what J should be: the chain rule by hand ----------------------------------------------------------------


def reference(
    points_of_j: list[int], cameras: int = 200, points: int = 16_667
) -> list[scipy.sparse.csr_array]:
    return [closed_form(make(cameras, points)) for _ in points_of_j]


def closed_form(scene: Scene) -> scipy.sparse.csr_array:
    """J by hand, (2 observations, 9 cameras + 3 points)."""
    rows, columns, values = [], [], []
    for number, (who, what) in enumerate(zip(scene.who, scene.what, strict=True)):
        by_camera, by_point = by_hand(scene.cameras[who], scene.points[what])
        first = scene.cameras.size
        where = np.concatenate([9 * who + np.arange(9), first + 3 * what + np.arange(3)])
        rows.append(np.repeat([2 * number, 2 * number + 1], 12))
        columns.append(np.tile(where, 2))
        values.append(np.hstack([by_camera, by_point]).ravel())
    places = np.concatenate(rows), np.concatenate(columns)
    shape = 2 * len(scene.who), scene.cameras.size + scene.points.size
    return scipy.sparse.csr_array((np.concatenate(values), places), shape)


def by_hand(camera: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives of one projection by the camera, (2, 9), and by the point, (2, 3).

    That of R X by w is -R [X]ₓ (w wᵀ + (Rᵀ - 1) [w]ₓ) / |w|²: G. Gallego, A. Yezzi, "A compact formula for
    the derivative of a 3-D rotation in exponential coordinates", J. Math. Imaging and Vision 51 (2015).
    """
    w, t, (focal, k1, k2) = camera[:3], camera[3:6], camera[6:]
    angle = np.linalg.norm(w)
    K = crossing(w / angle)
    R = np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K
    place = R @ point + t
    p = -place[:2] / place[2]
    p_by_place = np.array([[-1, 0, -p[0]], [0, -1, -p[1]]]) / place[2]
    squared = p @ p
    stretch = 1 + k1 * squared + k2 * squared**2
    by_p = focal * (stretch * np.eye(2) + (2 * k1 + 4 * k2 * squared) * np.outer(p, p))
    by_place = by_p @ p_by_place
    turned_by_w = -R @ crossing(point) @ (np.outer(w, w) + (R.T - np.eye(3)) @ crossing(w)) / angle**2
    intrinsic = np.stack([stretch * p, focal * squared * p, focal * squared**2 * p], 1)
    return np.hstack([by_place @ turned_by_w, by_place, intrinsic]), by_place @ R


def crossing(w: np.ndarray) -> np.ndarray:
    """[w]ₓ: times x it is w × x."""
    return np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])


# -- what J says ---------------------------------------------------------------------------------------------


def finding(J: SparseDataset, cameras: int = 200, points: int = 16_667) -> str:
    before, after, iterations = gauss_newton(J, cameras, points)
    _, m, n = J.shape
    left = NOISE * (1 - (n - 7) / m) ** 0.5  # 7: what moves, turns and scales the scene shows nowhere
    return (
        f"A Gauss–Newton step ({iterations} iterations of LSQR) takes the root mean square of the residuals "
        f"from {before:.2f} to {after:.3f} pixels; the noise of the observations leaves {left:.3f}."
    )


def gauss_newton(J: SparseDataset, cameras: int = 200, points: int = 16_667) -> tuple[float, float, int]:
    """Root mean squares of the residuals, in pixels, before and after; and how many iterations it took.

    A translation, a rotation and a scale of the whole scene change nothing: of all steps that are as good,
    LSQR finds the shortest. Source: C. Paige, M. Saunders, "LSQR", ACM TOMS 8 (1982).
    """
    build = problem(cameras, points)
    where = build.leaves
    value = build.fn(*where).flatten()
    scales = scipy.sparse.diags_array(units(cameras, points))
    answer = lsqr(J[0] @ scales, -value.numpy(), atol=1e-4, btol=1e-4, iter_lim=300)
    step = torch.from_numpy(scales @ answer[0])
    parts = zip(where, step.split([9 * cameras, 3 * points]), strict=True)
    moved = [leaf + part.reshape(leaf.shape) for leaf, part in parts]
    after = build.fn(*moved)
    return float(value.square().mean().sqrt()), float(after.square().mean().sqrt()), int(answer[2])


def units(cameras: int, points: int) -> np.ndarray:
    """A size for each unknown, so that LSQR compares pixels of focal length with radians: (n,)."""
    return np.concatenate(
        [np.tile([0.01] * 3 + [0.05] * 3 + [5, 0.02, 0.02], cameras), np.full(3 * points, 0.02)]
    )
