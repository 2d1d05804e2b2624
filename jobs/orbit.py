"""The states of satellites with respect to their initial states and to the parameters of the force model.

Gravity with the term of the Earth's oblateness, and the drag of an exponential atmosphere; Runge–Kutta's
classical method with a fixed step. Lengths are in Earth radii (6,378 km), times in the unit in which the
Earth's gravitational parameter is 1 (13.4 min).

Source of the models and figures: D. Vallado, "Fundamentals of Astrodynamics and Applications", 4th edition
(2013), sections 8.6 and 8.7.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from jacjobs import JacobianDataset, Problem

KILOMETRES = 6378.137
"""In an Earth radius."""
HEIGHT, SCALE = 400 / KILOMETRES, 58.515 / KILOMETRES
"""The density falls by e with each `SCALE` above `HEIGHT`."""
DRAG = 0.5 * 3.725e-12 * 0.022 * KILOMETRES * 1e3
"""Half the density at `HEIGHT` (kg/m³) × drag coefficient × area per mass (0.022 m²/kg), per Earth radius."""
PARAMETERS = torch.tensor([1.0, 1.08263e-3, DRAG], dtype=torch.float64)
"""The gravitational parameter, J2, and drag."""
FLATTENING = torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)


def problem(satellites: int = 500, revolutions: float = 1, steps: int = 32, every: int = 2) -> Problem:
    """`steps` of Runge–Kutta during `revolutions`, the state after each `every` of them. Returns
    (steps / every, 6) a satellite: m = 6 steps / every, n = 6 + 3, P = satellites.
    """

    def states(initial: Tensor, parameters: Tensor, step: Tensor) -> Tensor:
        """(P, 6), (3,) and (P, 1) to (P, steps / every, 6)."""
        mu, oblateness, drag = parameters
        state, path = initial, []
        for number in range(1, steps + 1):
            k1 = slope(state, mu, oblateness, drag)
            k2 = slope(state + step / 2 * k1, mu, oblateness, drag)
            k3 = slope(state + step / 2 * k2, mu, oblateness, drag)
            k4 = slope(state + step * k3, mu, oblateness, drag)
            state = state + step / 6 * (k1 + 2 * (k2 + k3) + k4)
            if number % every == 0:
                path.append(state)
        return torch.stack(path, 1)

    initial = fleet(satellites)
    step = revolutions / steps * periods(initial)
    arguments = initial, PARAMETERS, step[:, None]
    return Problem(states, arguments, argnums=(0, 1), in_dims=(0, None, 0), batched=True)


def slope(state: Tensor, mu: Tensor, oblateness: Tensor, drag: Tensor) -> Tensor:
    """The time derivative of position and velocity, (P, 6)."""
    place, velocity = state[:, :3], state[:, 3:]
    squared = place.square().sum(1, keepdim=True)
    radius = squared.sqrt()
    tilt = 5 * place[:, 2:].square() / squared
    gravity = -mu / (squared * radius) * (1 + 1.5 * oblateness / squared * (FLATTENING - tilt)) * place
    density = torch.exp((1 + HEIGHT - radius) / SCALE)
    resistance = -drag * density * velocity.norm(dim=1, keepdim=True) * velocity
    return torch.cat([velocity, gravity + resistance], 1)


def periods(initial: Tensor) -> Tensor:
    """How long a revolution takes, without the Earth's oblateness and its air: (P,)."""
    energy = initial[:, 3:].square().sum(1) / 2 - 1 / initial[:, :3].norm(dim=1)
    return 2 * math.pi * (-2 * energy) ** -1.5


def fleet(satellites: int) -> Tensor:
    """Nearly circular orbits of random planes, 350 to 700 km high: (satellites, 6)."""
    draw = np.random.default_rng(0)
    radius = 1 + draw.uniform(350, 700, satellites) / KILOMETRES
    axes = np.linalg.qr(draw.normal(size=(satellites, 3, 2)))[0]
    place = axes[:, :, 0] * radius[:, None]
    velocity = axes[:, :, 1] * np.sqrt(1 / radius)[:, None] * draw.uniform(0.999, 1.001, (satellites, 1))
    return torch.from_numpy(np.hstack([place, velocity]))


# -- what J should be: the variational equations -------------------------------------------------------------


def reference(
    points: list[int], satellites: int = 500, revolutions: float = 1, steps: int = 32, every: int = 2
) -> np.ndarray:
    """J by integrating S' = A S + B beside the state, A and B by hand (`linearised`).

    The same Runge–Kutta: the derivative of its step is its step for the derivative's equation, so that both
    differ by rounding only. Source: E. Hairer, S. Nørsett, G. Wanner, "Solving Ordinary Differential
    Equations I", 2nd edition (1993), section I.14.
    """
    some = fleet(satellites)[points]
    blocks = []
    for initial, period in zip(some.numpy(), periods(some).tolist(), strict=True):
        step = revolutions / steps * period
        joint, path = np.hstack([initial[:, None], np.eye(6, 9)]), []
        for number in range(1, steps + 1):
            k1 = linearised(joint)
            k2 = linearised(joint + step / 2 * k1)
            k3 = linearised(joint + step / 2 * k2)
            k4 = linearised(joint + step * k3)
            joint = joint + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            if number % every == 0:
                path.append(joint[:, 1:])
        blocks.append(np.vstack(path))
    return np.stack(blocks)


def linearised(joint: np.ndarray) -> np.ndarray:
    """The time derivative of a state and of its sensitivities, side by side: (6, 1 + 9)."""
    mu, oblateness, drag = PARAMETERS.numpy()
    r, v = joint[:3, 0], joint[3:, 0]
    z, up, flat = r[2], np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 3.0])
    radius, speed = math.sqrt(r @ r), math.sqrt(v @ v)
    kepler = r / radius**3
    oblate = 1.5 * (flat * r / radius**5 - 5 * z**2 * r / radius**7)
    air = -math.exp((1 + HEIGHT - radius) / SCALE) * speed * v
    kepler_by_r = np.eye(3) / radius**3 - 3 * np.outer(r, r) / radius**5
    oblate_by_r = 1.5 * (
        np.diag(flat) / radius**5
        - 5 * np.outer(flat * r, r) / radius**7
        - 10 * z * np.outer(r, up) / radius**7
        - 5 * z**2 * np.eye(3) / radius**7
        + 35 * z**2 * np.outer(r, r) / radius**9
    )
    A = np.zeros((6, 6))
    A[:3, 3:] = np.eye(3)
    A[3:, :3] = -mu * (kepler_by_r + oblateness * oblate_by_r) - drag * np.outer(air, r) / (radius * SCALE)
    A[3:, 3:] = drag * (air / speed)[:, None] * (v / speed)
    A[3:, 3:] -= drag * math.exp((1 + HEIGHT - radius) / SCALE) * speed * np.eye(3)
    B = np.zeros((6, 9))
    B[3:, 6] = -(kepler + oblateness * oblate)
    B[3:, 7] = -mu * oblate
    B[3:, 8] = air
    by_time = np.hstack([v, -mu * (kepler + oblateness * oblate) + drag * air])
    return np.hstack([by_time[:, None], A @ joint[:, 1:] + B])


# -- what J says ---------------------------------------------------------------------------------------------


def finding(
    J: JacobianDataset, satellites: int = 500, revolutions: float = 1, steps: int = 32, every: int = 2
) -> str:
    along, by_drag = drifts(J, satellites)
    return (
        f"An error of a metre in a satellite's height becomes {along:.1f} m along its track, "
        f"{along / revolutions / math.pi:.2f}π a revolution (theory says 6π, for a circle around a round "
        f"Earth); one of a tenth in the drag, {by_drag:.1f} m. Medians of {J.points:,} satellites."
    )


def drifts(J: JacobianDataset, satellites: int = 500) -> tuple[float, float]:
    """How far along its track a satellite is misplaced in the end, in metres: for a metre of error in the
    initial height, and for a tenth of error in the drag. Medians.
    """
    initial = fleet(satellites).numpy()
    place, velocity = initial[:, :3], initial[:, 3:]
    up = place / np.linalg.norm(place, axis=1, keepdims=True)
    forward = velocity / np.linalg.norm(velocity, axis=1, keepdims=True)
    last = J[:, -6:-3, :]  # the position in the end, where it began if the revolutions are whole
    from_height = np.einsum("pi,pij,pj->p", forward, last[:, :, :3], up)
    from_drag = np.einsum("pi,pi->p", forward, last[:, :, 8]) * DRAG / 10 * KILOMETRES * 1e3
    return float(np.median(np.abs(from_height))), float(np.median(np.abs(from_drag)))
