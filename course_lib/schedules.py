"""Noise schedules alpha(t), sigma(t), everything that follows from them, and time grids.

x_t = alpha(t) x_0 + sigma(t) eps, with data at t = 0 and noise at t = 1. The forward SDE with these marginals is linear,

    dx = f(t) x dt + g(t) dw,    f = d log(alpha)/dt,    g^2 = d(sigma^2)/dt - 2 f sigma^2

(Kingma et al. 2021; Lu et al. 2022, section 2.1), so a schedule is two functions and their derivatives. Times may be numbers
or tensors of any shape; results have that shape. Python numbers are taken as float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import need_positive, need_whole

LOG_SNR_RANGE = 10.0  # grids run over log-SNR in [-10, 10]: sigma/alpha between e^5 and e^-5


def as_time(t) -> Tensor:
    """t as a floating tensor; numbers become float64, so that exp and log keep their digits at both ends."""
    return t if isinstance(t, Tensor) and t.is_floating_point() else torch.as_tensor(t, dtype=torch.float64)


class Schedule:
    """What all schedules share. A subclass gives alpha, sigma, drift, diffusion2 and time_of_log_snr."""

    def alpha(self, t) -> Tensor:
        """Signal level: the mean of x_t given x_0 is alpha(t) x_0."""
        raise NotImplementedError

    def sigma(self, t) -> Tensor:
        """Noise level: the standard deviation of x_t given x_0."""
        raise NotImplementedError

    def drift(self, t) -> Tensor:
        """f(t) = d log(alpha)/dt, the linear drift of the forward SDE. Raises ValueError where it is infinite."""
        raise NotImplementedError

    def diffusion2(self, t) -> Tensor:
        """g(t)^2, the squared diffusion of the forward SDE. Raises ValueError where it is infinite."""
        raise NotImplementedError

    def time_of_log_snr(self, log_snr) -> Tensor:
        """The time t in [0, 1] at which log_snr(t) takes the given value."""
        raise NotImplementedError

    def log_snr(self, t) -> Tensor:
        """log(alpha^2/sigma^2), decreasing in t; infinite at t = 0, where there is no noise."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @property
    def t_max(self) -> float:
        """Where sampling starts: the last time with log-SNR >= -10, and 1 if it never falls so low."""
        return min(1.0, self.time_of_log_snr(-LOG_SNR_RANGE).item())

    @property
    def t_min(self) -> float:
        """Where sampling ends: log-SNR = 10, a noise of e^-5 = 0.0067 of the signal, less than one grey level in 256."""
        return self.time_of_log_snr(LOG_SNR_RANGE).item()


@dataclass(frozen=True)
class LinearVP(Schedule):
    """Variance preserving with beta linear in t: DDPM's schedule in continuous time (Song et al. 2021, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        need_positive(self.beta_min, "beta_min")
        need_positive(self.beta_max, "beta_max")

    def beta(self, t) -> Tensor:
        """The rate at which the forward SDE forgets; beta(t) = -d log(alpha^2)/dt."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def integral(self, t) -> Tensor:
        """B(t) = integral of beta from 0 to t, so that alpha^2 = exp(-B)."""
        t = as_time(t)
        return t * (t * ((self.beta_max - self.beta_min) / 2) + self.beta_min)

    def alpha(self, t) -> Tensor:
        return (self.integral(t) * -0.5).exp()

    def sigma(self, t) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()  # expm1: 1 - exp(-B) without cancellation at small t

    def drift(self, t) -> Tensor:
        return -self.beta(t) / 2

    def diffusion2(self, t) -> Tensor:
        return self.beta(t)

    def time_of_integral(self, B: Tensor) -> Tensor:
        """The time at which B(t) takes the given value: the positive root of a quadratic, in its stable form."""
        slope = self.beta_max - self.beta_min
        return torch.where(B.isinf(), B, 2 * B / (self.beta_min + (self.beta_min**2 + 2 * slope * B).sqrt()))

    def time_of_log_snr(self, log_snr) -> Tensor:
        return self.time_of_integral(torch.nn.functional.softplus(-as_time(log_snr)))


@dataclass(frozen=True)
class SubVP(LinearVP):
    """Sub-VP: LinearVP's alpha, with the smaller noise sigma = 1 - alpha^2 (Song et al. 2021, eq. 29 of the appendix)."""

    def sigma(self, t) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def diffusion2(self, t) -> Tensor:
        return self.beta(t) * -torch.expm1(-2 * self.integral(t))

    def time_of_log_snr(self, log_snr) -> Tensor:
        k = (-as_time(log_snr) / 2).exp()  # (1 - alpha^2)/alpha = -2 sinh(log alpha) = k
        return self.time_of_integral(2 * (k / 2).asinh())


def _before_one(t) -> Tensor:
    t = as_time(t)
    if bool((t >= 1).any()):
        raise ValueError(f"t: the drift and diffusion of this schedule are infinite at t = 1, got t up to {t.max():g}; "
                         "stop at schedule.t_max")
    return t


@dataclass(frozen=True)
class CosineVP(Schedule):
    """Variance preserving along a quarter of a circle: alpha = cos(pi t/2), sigma = sin(pi t/2).

    Nichol & Dhariwal 2021, without the offset that gives their smallest time some noise.
    """

    def alpha(self, t) -> Tensor:
        return ((1 - as_time(t)) * (math.pi / 2)).sin()  # a cosine, and 0 at t = 1 in every precision

    def sigma(self, t) -> Tensor:
        return (as_time(t) * (math.pi / 2)).sin()

    def drift(self, t) -> Tensor:
        return self.diffusion2(t) / -2

    def diffusion2(self, t) -> Tensor:
        t = _before_one(t)
        return math.pi * self.sigma(t) / self.alpha(t)  # pi tan(pi t/2)

    def time_of_log_snr(self, log_snr) -> Tensor:
        return (-as_time(log_snr) / 2).exp().atan() * (2 / math.pi)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1 and geometric noise (Song et al. 2021, eq. 30-31).

    sigma^2 = sigma_min^2 (r^(2t) - 1) with r = sigma_max/sigma_min. The -1, absent from the paper, makes x_0 clean and the
    marginals exactly those of the forward SDE.
    """

    sigma_max: float = 50.0
    sigma_min: float = 0.01

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma_max: expected more than sigma_min > 0, got {self.sigma_max!r} and {self.sigma_min!r}")

    @property
    def rate(self) -> float:
        """2 log(sigma_max/sigma_min), the growth rate of the variance."""
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t) -> Tensor:
        return self.sigma_min * torch.expm1(as_time(t) * self.rate).sqrt()

    def drift(self, t) -> Tensor:
        return torch.zeros_like(as_time(t))

    def diffusion2(self, t) -> Tensor:
        return self.sigma_min**2 * self.rate * (as_time(t) * self.rate).exp()

    def time_of_log_snr(self, log_snr) -> Tensor:
        return torch.log1p((-as_time(log_snr)).exp() / self.sigma_min**2) / self.rate


@dataclass(frozen=True)
class Flow(Schedule):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (Lipman et al. 2023; Liu et al. 2023)."""

    def alpha(self, t) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t) -> Tensor:
        return as_time(t)

    def drift(self, t) -> Tensor:
        return -1 / (1 - _before_one(t))

    def diffusion2(self, t) -> Tensor:
        t = _before_one(t)
        return 2 * t / (1 - t)

    def time_of_log_snr(self, log_snr) -> Tensor:
        return (-as_time(log_snr) / 2).sigmoid()


# ---------------------------------------------------------------------------------------------- time grids
def _fractions(n: int) -> Tensor:
    """0, 1/n, ..., 1: how far along the way from noise to data each of the n + 1 times of a grid lies."""
    return torch.linspace(0, 1, need_whole(n, "n", what="a whole number of steps") + 1, dtype=torch.float64)


def _pinned(ts: Tensor, schedule: Schedule, end: float | None = None) -> Tensor:
    ts[0], ts[-1] = schedule.t_max, schedule.t_min if end is None else end  # exactly, whatever the rounding of the round trip
    return ts


def uniform(n: int, schedule: Schedule) -> Tensor:
    """n equal steps in t: (n+1,) decreasing times from t_max to t_min."""
    return _pinned(schedule.t_max + _fractions(n) * (schedule.t_min - schedule.t_max), schedule)


def quadratic(n: int, schedule: Schedule) -> Tensor:
    """Equal steps in sqrt(t), denser near the data: (n+1,) decreasing times (Song, Meng & Ermon 2021, appendix D.2)."""
    start, end = schedule.t_max**0.5, schedule.t_min**0.5
    return _pinned((start + _fractions(n) * (end - start)) ** 2, schedule)


def log_snr_uniform(n: int, schedule: Schedule) -> Tensor:
    """Equal steps in log-SNR: (n+1,) decreasing times (Lu et al. 2022, section 3.3)."""
    start, end = schedule.log_snr(schedule.t_max), schedule.log_snr(schedule.t_min)
    return _pinned(schedule.time_of_log_snr(start + _fractions(n) * (end - start)), schedule)


def log_snr_to_zero(n: int, schedule: Schedule, end: float = 5.0) -> Tensor:
    """Equal steps in log-SNR from t_max down to log-SNR `end`, then one to t = 0: (n+1,) decreasing times.

    The last step lands on x0_hat. A network that is unsure of the faintest noise is not asked about it again and again.
    """
    start, shares = schedule.log_snr(schedule.t_max), _fractions(n)[:-1] * n / max(n - 1, 1)                    # 0, ..., 1
    if not start < end < math.inf:
        raise ValueError(f"end: expected a finite log-SNR above that of the start, {start:g}, got {end!r}")
    ts = torch.cat([schedule.time_of_log_snr(start + shares * (end - start)), torch.zeros(1, dtype=torch.float64)])
    return _pinned(ts, schedule, 0)


def flow_uniform(n: int, schedule: Schedule, scale: float = 1.0, rho: float = 1.0) -> Tensor:
    """Equal steps in u^(1/rho), u = sigma/(scale alpha + sigma), from t_max to t = 0: (n+1,) decreasing times.

    At scale 1 u is the time of `Flow`, in which a data point and its noise are joined by a straight line. The larger the
    scale, the more of the steps are at much noise; the larger rho, the smaller the last of them. What becomes of a sample is
    decided early in many dimensions, late in the plane.
    """
    need_positive(scale, "scale")
    need_positive(rho, "rho")
    start = (-schedule.log_snr(schedule.t_max) / 2).exp() / scale                               # u/(1 - u) there
    u = start / (1 + start) * (1 - _fractions(n)) ** rho
    return _pinned(schedule.time_of_log_snr(2 * ((1 - u) / (scale * u)).log()), schedule, 0)


def karras(n: int, schedule: Schedule, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho): (n+1,) decreasing times (Karras et al. 2022, eq. 5)."""
    need_positive(rho, "rho")
    start, end = ((-schedule.log_snr(t) / (2 * rho)).exp() for t in (schedule.t_max, schedule.t_min))
    return _pinned(schedule.time_of_log_snr(-2 * rho * (start + _fractions(n) * (end - start)).log()), schedule)


def angle(t, schedule: Schedule, std: float = 0.5) -> Tensor:
    """theta with sigma/alpha = std tan(theta), between 0 at the data and pi/2 at pure noise."""
    need_positive(std, "std", "the data's positive standard deviation")
    return ((-schedule.log_snr(t) / 2).exp() / std).atan()


def time_of_angle(theta: Tensor, schedule: Schedule, std: float = 0.5) -> Tensor:
    """The time at which `angle` takes the given value, strictly between 0 and pi/2."""
    return schedule.time_of_log_snr(-2 * (std * theta.tan()).log())


def equal_angles(n: int, schedule: Schedule, std: float = 0.5) -> Tensor:
    """Equal steps in the angle theta with sigma/alpha = std tan(theta): (n+1,) decreasing times.

    The best grid for n steps of DDIM on data N(m, std^2 I). There each step from theta to theta' shrinks what is left of the
    exact solution by cos(theta - theta'), and for a given sum of angles the product of cosines is largest if all are equal.
    """
    start, end = angle(schedule.t_max, schedule, std), angle(schedule.t_min, schedule, std)
    return _pinned(time_of_angle(start + _fractions(n) * (end - start), schedule, std), schedule)
