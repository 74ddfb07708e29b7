# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 1, score matching: its exercises with their known mistakes, and its predictions."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ...denoiser import per_row, tweedie
from ...schedules import VE, CosineVP, Flow, LinearVP, Schedule
from ...score_matching import denoising_score_loss, sliced_loss
from ...targets import GaussianMixture
from ..exercises import Exercise, Mistake, Prediction


def gradient(log_prob, x: Tensor) -> Tensor:
    """grad log p at every row of x (B, d), by automatic differentiation of log_prob: (B, d) -> (B,)."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


# ---------------------------------------------------------------------------------------------- 1.1 one Gaussian
def gaussian_score(x: Tensor, m: Tensor, tau: Tensor) -> Tensor:
    """Score (B, ...) of N(m, tau^2 I) at x (B, ...), with m like one row of x and one tau (B,) a row."""
    return (m - x) / per_row(tau, x) ** 2


def gaussian_cases(generator: torch.Generator) -> Iterable[tuple]:
    for shape in ((1, 2), (2, 2), (5, 2), (1, 1, 8, 8), (8, 1, 8, 8)):
        x, m = (torch.randn(size, generator=generator) for size in (shape, shape[1:]))
        yield x, m, 0.3 + torch.rand(shape[0], generator=generator)


GAUSSIAN = Exercise(
    id="1.1", title="The score of one Gaussian", reference=gaussian_score, cases=gaussian_cases,
    mistakes=[
        Mistake("points away from the mean", lambda x, m, tau: (x - m) / per_row(tau, x) ** 2,
                "your arrows point away from the mean: a score points to where the density rises; try x = 1 under N(0, 1)"),
        Mistake("standard deviation for variance", lambda x, m, tau: (m - x) / per_row(tau, x),
                "you divide by the standard deviation; look again at which power of tau stands in the exponent of the density"),
        Mistake("one tau a row meets the last axis", lambda x, m, tau: (m - x) / tau**2,
                "tau of shape (B,) is broadcast along the last axis of x instead of its rows, which goes unnoticed at B = 1"),
        Mistake("score of a unit Gaussian", lambda x, m, tau: m - x,
                "tau does not enter: that is right for standard deviation 1 only"),
        Mistake("centre forgotten", lambda x, m, tau: -x / per_row(tau, x) ** 2,
                "m does not enter: all your arrows point to the origin"),
        Mistake("half kept", lambda x, m, tau: (m - x) / (2 * per_row(tau, x) ** 2),
                "half the score: what becomes of the 1/2 when you differentiate a square?"),
        Mistake("one tau for all", lambda x, m, tau: (m - x) / tau.mean() ** 2,
                "you made one number of all the tau; every row has a standard deviation of its own"),
        Mistake("one new axis for pictures too", lambda x, m, tau: (m - x) / tau[:, None] ** 2,
                "the shape (B, 1) is right for points only; a picture's tau needs (B, 1, 1, 1), which per_row gives"),
        Mistake("unshaped, and not squared", lambda x, m, tau: (m - x) / tau,
                "two things at once: tau of shape (B,) must be shaped by per_row, and its power is not the one of (1.2)"),
        Mistake("times the variance", lambda x, m, tau: (m - x) * per_row(tau, x) ** 2,
                "you multiply by the variance; which bell pulls harder, a narrow or a wide one?"),
        Mistake("root of tau", lambda x, m, tau: (m - x) / per_row(tau, x).sqrt(),
                "tau is a standard deviation already, there is no root to take"),
        Mistake("away, and not squared", lambda x, m, tau: (x - m) / per_row(tau, x),
                "two things at once: your arrows point away from the mean, and the power of tau is not the one of (1.2)"),
        Mistake("brackets", lambda x, m, tau: m - x / per_row(tau, x) ** 2,
                "Python divides before it subtracts: the difference belongs in brackets"),
        Mistake("all squared", lambda x, m, tau: ((m - x) / per_row(tau, x)) ** 2,
                "you squared the difference too; a square has no direction, and a score points somewhere"),
    ],
    tips=["Differentiate -|x - m|^2/(2 tau^2) with respect to one coordinate of x",
          "per_row(tau, x) has a shape that multiplies or divides x row by row"],
)


# ---------------------------------------------------------------------------------------------- 1.2 mixtures
def mixture_score(x: Tensor, means: Tensor, tau: Tensor, weights: Tensor) -> Tensor:
    """Score (B, d) at x (B, d) of the mixture with means (K, d), standard deviations tau (K,), weights (K,)."""
    return gradient(GaussianMixture(means, tau, weights).log_prob, x)


def mixture_cases(generator: torch.Generator) -> Iterable[tuple]:
    for B, K, d, spread in ((1, 2, 2, 1.0), (6, 3, 2, 1.0), (4, 5, 3, 1.0), (5, 2, 2, 60.0)):
        means = 2 * torch.randn(K, d, generator=generator)
        tau = 0.3 + torch.rand(K, generator=generator)
        weights = torch.rand(K, generator=generator).add(0.2)
        direction = nn.functional.normalize(torch.randn(B, d, generator=generator))
        yield spread * 2 * direction, means, tau, weights / weights.sum()


def pulled(x: Tensor, means: Tensor, tau: Tensor, r: Tensor) -> Tensor:
    """The average of the components' scores with the shares r (B, K)."""
    return (r[..., None] * (means - x[:, None]) / tau[:, None] ** 2).sum(1)


def responsible(log_r=None, share=lambda log_r: log_r.softmax(1)):
    """A wrong answer with log_r(log w, log tau, half the squared distance (B, K), tau, d) or what makes shares of it replaced."""
    log_r = log_r or (lambda w, log_tau, half, tau, d: w - d * log_tau - half / tau**2)

    def wrong(x, means, tau, weights):
        half = (x[:, None] - means).square().sum(-1) / 2
        return pulled(x, means, tau, share(log_r(weights.log(), tau.log(), half, tau, x.shape[1])))
    return wrong


def normalised(joint: Tensor, least: float = 0.0) -> Tensor:
    return joint / joint.sum(1, keepdim=True).clamp(min=least)


MIXTURE = Exercise(
    id="1.2", title="The score of a mixture", reference=mixture_score, cases=mixture_cases,
    mistakes=[
        Mistake("densities in linear space", responsible(share=lambda log_r: normalised(log_r.exp())),
                "right near the data, NaN far from it: every density underflows to 0 and you divide 0 by 0; stay with logarithms"),
        Mistake("not normalised", responsible(share=torch.exp),
                "your shares do not sum to 1: the division by p(x) is missing"),
        Mistake("prior weights for responsibilities", responsible(lambda w, log_tau, half, tau, d: w + 0 * half),
                "you average with the weights that the components have before x is seen; x tells which of them it came from"),
        Mistake("weights forgotten", responsible(lambda w, log_tau, half, tau, d: -d * log_tau - half / tau**2),
                "your responsibilities treat all components as equally frequent: where did the weights go?"),
        Mistake("weights without logarithm", responsible(lambda w, log_tau, half, tau, d: w.exp() - d * log_tau - half / tau**2),
                "the weight enters a logarithm: log(w p) = log w + log p"),
        Mistake("weight times logarithm", responsible(lambda w, log_tau, half, tau, d: w.exp() * (-d * log_tau - half / tau**2)),
                "you multiply the logarithm of the density by the weight: the logarithm of a product is a sum"),
        Mistake("no logarithm at all", responsible(
            lambda w, log_tau, half, tau, d: (w - d * (log_tau + math.log(2 * math.pi) / 2) - half / tau**2).exp()),
                "a softmax takes the exponential itself: give it the logarithm of w_k p_k, you give it w_k p_k"),
        Mistake("a logarithm too many", responsible(share=lambda log_r: log_r.log_softmax(1)),
                "these are the logarithms of the shares; the shares themselves weigh the pulls"),
        Mistake("normaliser forgotten", responsible(lambda w, log_tau, half, tau, d: w - half / tau**2),
                "components of different width are not compared fairly: the density of a wide Gaussian is also lower at its peak"),
        Mistake("exponent alone", responsible(lambda w, log_tau, half, tau, d: -half / tau**2),
                "you compare distances only: p_k has a factor before its exponential, and w_k stands before both"),
        Mistake("sign of the normaliser", responsible(lambda w, log_tau, half, tau, d: w + d * log_tau - half / tau**2),
                "with you a wide Gaussian is higher at its peak than a narrow one: look at the sign of the power of tau"),
        Mistake("normaliser halved", responsible(lambda w, log_tau, half, tau, d: w - d / 2 * log_tau - half / tau**2),
                "your normaliser has tau to half the power that is due: it is tau^2 that is raised to -d/2"),
        Mistake("normaliser doubled", responsible(lambda w, log_tau, half, tau, d: w - 2 * d * log_tau - half / tau**2),
                "your normaliser has tau to twice the power that is due: tau^2 is raised to -d/2, not to -d"),
        Mistake("normaliser of one dimension", responsible(lambda w, log_tau, half, tau, d: w - log_tau - half / tau**2),
                "your normaliser is that of one dimension; in d dimensions a Gaussian has a factor 1/tau for each of them"),
        Mistake("normaliser of two dimensions", responsible(lambda w, log_tau, half, tau, d: w - 2 * log_tau - half / tau**2),
                "your normaliser is right in the plane only: how many numbers has a row of x?"),
        Mistake("half forgotten in the exponent", responsible(lambda w, log_tau, half, tau, d: w - d * log_tau - 2 * half / tau**2),
                "the exponent of a Gaussian is the squared distance over *twice* the variance"),
        Mistake("standard deviation in the exponent", responsible(lambda w, log_tau, half, tau, d: w - d * log_tau - half / tau),
                "the exponent of the density holds the variance, yours holds the standard deviation"),
        Mistake("brackets", responsible(lambda w, log_tau, half, tau, d: w - d * log_tau - half * tau**2),
                "Python goes from left to right: what is divided by 2 and then multiplied by tau^2 is not divided by it"),
        Mistake("sign of the exponent", responsible(lambda w, log_tau, half, tau, d: w - d * log_tau + half / tau**2),
                "with you the farthest component is the most responsible: look at the sign of the exponent"),
        Mistake("distance not squared", responsible(lambda w, log_tau, half, tau, d: w - d * log_tau - (half / 2).sqrt() / tau**2),
                "the exponent holds the *squared* distance; you took a root"),
        Mistake("softmax over the points", responsible(share=lambda log_r: log_r.softmax(0)),
                "your shares sum to 1 over the points of the batch; they must sum to 1 over the components of each point"),
        Mistake("nearest component alone", responsible(share=lambda r: nn.functional.one_hot(r.argmax(1), r.shape[1]).to(r)),
                "you take the likeliest component for the only one; all of them pull, each by its share"),
        Mistake("division guarded", responsible(share=lambda log_r: normalised(log_r.exp(), 1e-30)),
                "no NaN, but far from the data every share comes out as 0, and so does the score: a guard cannot bring back "
                "what has underflowed; stay with logarithms"),
        Mistake("logarithm guarded", responsible(share=lambda log_r: (log_r.exp() + 1e-12).log().softmax(1)),
                "far from the data the small number that you add decides, so that all components share alike; never leave "
                "the logarithms, and nothing has to be added"),
    ],
    tips=["r is a softmax: write down the logarithm of w_k N(x; m_k, tau_k^2), leaving out what all components share",
          "In d dimensions the density of a Gaussian carries the factor tau^(-d), so its logarithm has the term -d log(tau)"],
)


# ---------------------------------------------------------------------------------------------- 1.3 sliced loss
def small_network(d: int, generator: torch.Generator) -> nn.Module:
    """A score function (B, d) -> (B, d) of random weights drawn from the generator."""
    network = nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, d))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return network


def sliced_cases(generator: torch.Generator) -> Iterable[tuple]:
    for B, d in ((1, 2), (7, 2), (16, 3)):
        yield small_network(d, generator), torch.randn(B, d, generator=generator), torch.randn(B, d, generator=generator)


class HistoryLost(RuntimeError):
    """A loss came back whose gradient cannot be computed."""


def loss_with_gradient(function, network: nn.Module, *arguments):
    """The loss, and its gradient with respect to the first weights: a loss that cannot be trained is not right."""
    loss = function(network, *arguments)
    if not isinstance(loss, Tensor):
        return loss
    try:
        return loss, torch.autograd.grad(loss.sum(), network[0].weight)[0]
    except RuntimeError as error:       # told apart from an error inside the learner's own function
        raise HistoryLost(error) from error


def sliced(s, x, left, right, square=0.5, slope=1.0, **graph):
    """square |s|^2 + slope left' (ds/dx) right, averaged over the batch, to build wrong losses from."""
    x = x.detach().requires_grad_()
    s_x = s(x)
    derivative = torch.autograd.grad((s_x * left).sum(), x, **(graph or {"create_graph": True}))[0]
    return (square * s_x.square().sum(1) + slope * (derivative * right).sum(1)).mean()


def unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True)


SLICED = Exercise(
    id="1.3", title="The sliced loss", reference=sliced_loss, cases=sliced_cases, call=loss_with_gradient,
    mistakes=[
        Mistake("second v forgotten", lambda s, x, v: sliced(s, x, v, torch.ones_like(v)),
                "your slope is summed over all directions; project it on v a second time: the term is v' J v, not v' J 1"),
        Mistake("first v forgotten", lambda s, x, v: sliced(s, x, torch.ones_like(v), v),
                "you differentiate the sum of the components of s; the term is v' J v, so differentiate s projected on v"),
        Mistake("no v at all", lambda s, x, v: sliced(s, x, torch.ones_like(v), torch.ones_like(v)),
                "v does not enter at all: the sum of all entries of the Jacobian is not its trace"),
        Mistake("probes of length one", lambda s, x, v: sliced(s, x, unit(v), unit(v)),
                "you normalised v to length 1, so E[v v'] is I/d and not I: the divergence comes out d times too small"),
        Mistake("half forgotten", lambda s, x, v: sliced(s, x, v, v, square=1.0),
                "the square of s lacks its 1/2, which the derivation needs: the minimiser would be half the score"),
        Mistake("half on both terms", lambda s, x, v: sliced(s, x, v, v, slope=0.5),
                "the 1/2 belongs to the square only: integration by parts leaves none on the slope"),
        Mistake("minus before the slope", lambda s, x, v: sliced(s, x, v, v, slope=-1.0),
                "which sign did integration by parts leave before the trace?"),
        Mistake("mean inside the derivative", lambda s, x, v: sliced(s, x, v, v, slope=1 / x.shape[0]),
                "the batch size divides your slope: sum, do not average, before differentiating"),
        Mistake("mean of all entries inside the derivative", lambda s, x, v: sliced(s, x, v, v, slope=1 / x.numel()),
                "the number of entries of x divides your slope: sum, do not average, before differentiating"),
        Mistake("sum over the batch", lambda s, x, v: sliced(s, x, v, v) * x.shape[0],
                "a sum over the batch where the mean is due"),
        Mistake("mean over the coordinates", lambda s, x, v: sliced(s, x, v, v) / x.shape[1],
                "you average over the coordinates too; sum over the d coordinates, average over the batch only"),
        Mistake("slope not differentiable", lambda s, x, v: sliced(s, x, v, v, retain_graph=True),
                "the value is right, but the slope term has no gradient, so training would only shrink s; "
                "ask autograd to build the graph of the derivative too"),
        Mistake("slope without a history", lambda s, x, v: sliced(s, x, v, v, create_graph=False),
                "your slope is a number without a history; the loss must be differentiated again, by the weights"),
        Mistake("bare number", lambda s, x, v: sliced(s, x, v, v).item(),
                "the value is right, but `.item()` makes a bare number of it, which cannot be differentiated any more"),
        Mistake("sum of the squares over the batch", lambda s, x, v: sliced(s, x, v, v, square=0.5 * len(x)),
                "your first term is summed over the rows, while the second is averaged; both are means over the batch"),
        Mistake("squares averaged over the coordinates", lambda s, x, v: sliced(s, x, v, v, square=0.5 / x.shape[1]),
                "your first term averages over the coordinates; |s|^2 is a sum over them"),
        Mistake("slope averaged over the coordinates", lambda s, x, v: sliced(s, x, v, v, slope=1 / x.shape[1]),
                "your second term averages over the coordinates; a product of two vectors is a sum over them"),
        Mistake("slope alone", lambda s, x, v: sliced(s, x, v, v, square=0.0),
                "the square of s is missing: nothing keeps the arrows from growing without end"),
        Mistake("square alone", lambda s, x, v: sliced(s, x, v, v, slope=0.0),
                "that is smallest for s = 0: the second term of (1.6) is missing"),
        Mistake("square projected", lambda s, x, v: sliced(s, x, v, v, square=0.0) + (s(x) * v).sum(1).square().mean() / 2,
                "you project s on v before you square it; in (1.6) only the Jacobian stands between two v"),
        Mistake("length not squared", lambda s, x, v: sliced(s, x, v, v, square=0.0) + s(x).norm(dim=1).mean() / 2,
                "your first term has the length of s; its square is due"),
    ],
    tips=["torch.autograd.grad((s_x * v).sum(), x, create_graph=True)[0] has the shape of x and holds v' J for every row",
          "Each of the two terms is one number a row, so sum over axis 1, then take the mean over the rows"],
)


# ---------------------------------------------------------------------------------------------- 1.4 denoising loss
def denoising_cases(generator: torch.Generator) -> Iterable[tuple]:
    for B, d, sigma in ((1, 2, 0.3), (6, 2, 0.5), (9, 3, 1.7)):
        x0, eps = (torch.randn(B, d, generator=generator) for _ in range(2))
        yield small_network(d, generator), x0, sigma, eps


def half_square(residual: Tensor) -> Tensor:
    return residual.square().sum(1).mean() / 2


DENOISING = Exercise(
    id="1.4", title="The denoising loss", reference=denoising_score_loss, cases=denoising_cases, call=loss_with_gradient,
    mistakes=[
        Mistake("variance for standard deviation", lambda s, x0, sigma, eps: half_square(s(x0 + sigma**2 * eps) + eps / sigma),
                "you multiply the noise by the variance; check what Var(x_t) of your noisy points is"),
        Mistake("sign of the target", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) - eps / sigma),
                "the sign of your target: the score points back to the data, against the noise"),
        Mistake("target not divided by sigma", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) + eps),
                "your target does not know sigma: that regresses the noise, whose mean is -sigma times the score"),
        Mistake("target divided by the variance", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) + eps / sigma**2),
                "your target divides once too often: x_t - x_0 is sigma eps already, so one sigma of sigma^2 cancels"),
        Mistake("noise drawn twice", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * torch.randn_like(x0)) + eps / sigma),
                "you drew new noise: target and input must share one eps, or the target says nothing about the input"),
        Mistake("noise not scaled", lambda s, x0, sigma, eps: half_square(s(x0 + eps) + eps / sigma),
                "your noisy points do not know sigma: what is the standard deviation of x_t - x_0?"),
        Mistake("clean points scored", lambda s, x0, sigma, eps: half_square(s(x0) + eps / sigma),
                "you evaluate the score function at the clean points; at those the noise in the target is pure chance"),
        Mistake("half forgotten", lambda s, x0, sigma, eps: 2 * half_square(s(x0 + sigma * eps) + eps / sigma),
                "twice the expected value: the course's losses all carry the factor 1/2, so that they can be compared"),
        Mistake("mean over the coordinates",
                lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) + eps / sigma) / x0.shape[1],
                "you average over the coordinates too; sum over the d coordinates, average over the batch only"),
        Mistake("bare number", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) + eps / sigma).item(),
                "the value is right, but `.item()` makes a bare number of it, which cannot be differentiated any more"),
        Mistake("network held still", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps).detach() + eps / sigma),
                "the value is right, but it does not depend on the network's weights any more, so nothing would be learnt"),
        Mistake("mean of all, without the half",
                lambda s, x0, sigma, eps: (s(x0 + sigma * eps) + eps / sigma).square().mean(),
                "a plain mean of squares: sum over the coordinates, and mind the 1/2 (in two dimensions the two cancel)"),
        Mistake("sum over the batch", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) + eps / sigma) * len(x0),
                "a sum over the rows where the mean is due"),
        Mistake("square of the mean", lambda s, x0, sigma, eps: (s(x0 + sigma * eps) + eps / sigma).mean(0).square().sum() / 2,
                "you average the residuals before you square them, so that those of opposite signs cancel"),
        Mistake("length not squared", lambda s, x0, sigma, eps: (s(x0 + sigma * eps) + eps / sigma).norm(dim=1).mean() / 2,
                "you took the length of the residual; its square is due, or the minimiser is no mean"),
        Mistake("target times sigma", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) + sigma * eps),
                "your target is multiplied by sigma; the steeper the bell, the smaller is sigma, and the longer the score"),
        Mistake("the noise itself", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) - eps),
                "you ask for the noise itself; (1.8) asks for a score, which has another sign and another size"),
        Mistake("the clean point", lambda s, x0, sigma, eps: half_square(s(x0 + sigma * eps) - x0),
                "you ask for the clean point: that trains a denoiser; asked for is a score, an arrow back to it"),
    ],
    tips=["First x_t, then the residual: the score function at x_t minus its target",
          "The target is the score of the Gaussian bell around x_0, evaluated at x_t"],
)


# ---------------------------------------------------------------------------------------------- 1.5 Tweedie
def tweedie_cases(generator: torch.Generator) -> Iterable[tuple]:
    schedules = (LinearVP(), CosineVP(), VE(10.0), Flow())
    shapes = ((1, 2), (2, 2), (5, 2), (1, 1, 8, 8), (8, 1, 8, 8))
    for i, shape in enumerate((*shapes, (3, 2))):
        score_value, x = (torch.randn(shape, generator=generator) for _ in range(2))
        t = 0.2 + 0.6 * torch.rand(shape[:1] if i < len(shapes) else (), generator=generator)
        for schedule in schedules:
            yield score_value, x, schedule, t


def shaped_levels(x: Tensor, schedule: Schedule, t) -> tuple[Tensor, Tensor]:
    return per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)


def tweedie_with(formula):
    """A function of Tweedie's signature from formula(score_value, x, alpha, sigma)."""
    return lambda score_value, x, schedule, t: formula(score_value, x, *shaped_levels(x, schedule, t))


TWEEDIE = Exercise(
    id="1.5", title="From a score to a denoiser", reference=tweedie, cases=tweedie_cases,
    mistakes=[
        Mistake("standard deviation for variance", tweedie_with(lambda s, x, a, b: (x + b * s) / a),
                "the score is multiplied by sigma where its square is due: a score has the unit of 1/x"),
        Mistake("sign of the score", tweedie_with(lambda s, x, a, b: (x - b**2 * s) / a),
                "you walk against the score; denoising goes to where the density rises"),
        Mistake("alpha forgotten", tweedie_with(lambda s, x, a, b: x + b**2 * s),
                "that is the mean of alpha x_0: right for VE, where alpha is 1, wrong for every other schedule"),
        Mistake("alpha on x alone", tweedie_with(lambda s, x, a, b: x / a + b**2 * s),
                "the division by alpha holds for both terms: solve the equation for x_0 once more"),
        Mistake("times alpha", tweedie_with(lambda s, x, a, b: (x + b**2 * s) * a),
                "you multiply by alpha; x_t was made by shrinking x_0 by alpha, and this undoes it"),
        Mistake("one level a row meets the last axis",
                lambda s, x, schedule, t: (x + schedule.sigma(t) ** 2 * s) / schedule.alpha(t),
                "alpha and sigma of shape (B,) are broadcast along the last axis of x, which goes unnoticed at B = 1"),
        Mistake("one new axis for pictures too",
                lambda s, x, schedule, t: (x + schedule.sigma(t)[:, None] ** 2 * s) / schedule.alpha(t)[:, None],
                "right for points; for pictures alpha needs the shape (B, 1, 1, 1), and a single number has no axis to index"),
        Mistake("the shape (B, 1) for pictures too", lambda s, x, schedule, t: (
            x + schedule.sigma(t).view(-1, 1) ** 2 * s) / schedule.alpha(t).view(-1, 1),
                "the shape (B, 1) is right for points only; for pictures alpha needs (B, 1, 1, 1), which per_row gives"),
        Mistake("sigma unshaped", lambda s, x, schedule, t: (x + schedule.sigma(t) ** 2 * s) / per_row(schedule.alpha(t), x),
                "alpha has its shape, but sigma of shape (B,) still meets the last axis of x"),
        Mistake("alpha unshaped", lambda s, x, schedule, t: (x + per_row(schedule.sigma(t), x) ** 2 * s) / schedule.alpha(t),
                "sigma has its shape, but alpha of shape (B,) still meets the last axis of x"),
        Mistake("one time for all", lambda s, x, schedule, t: tweedie(s, x, schedule, t.mean()),
                "you use one time for the whole batch; every row may have its own"),
        Mistake("no x", tweedie_with(lambda s, x, a, b: b**2 * s / a),
                "that is only the way from x_t to the guess; it starts at x_t"),
        Mistake("no sigma", tweedie_with(lambda s, x, a, b: (x + s) / a),
                "the score is added as it is; how far to go along it depends on the noise level"),
        Mistake("divided by the variance", tweedie_with(lambda s, x, a, b: (x + s / b**2) / a),
                "the variance is on the wrong side: multiply the equation by it before you solve"),
        Mistake("score from a guess", tweedie_with(lambda s, x, a, b: (a * s - x) / b**2),
                "that makes a score of a guess; asked for is the way back"),
        Mistake("right for VP only", tweedie_with(lambda s, x, a, b: (x + (1 - a**2) * s) / a),
                "the variance of the noise is 1 - alpha^2 for variance-preserving schedules only"),
        Mistake("score for noise", tweedie_with(lambda s, x, a, b: (x - b * s) / a),
                "you take the score for the noise in x_t: they differ by a sign and by sigma, and only one of them is taken off"),
    ],
    tips=["Solve score = (alpha x0_hat - x_t)/sigma^2 for x0_hat",
          "schedule.alpha(t) has the shape of t; per_row(schedule.alpha(t), x) fits x"],
)


# ---------------------------------------------------------------------------------------------- 1.6 closing task
def tilted_score(x: Tensor, t: Tensor, m: Tensor, C: Tensor, schedule: Schedule) -> Tensor:
    """Score (B, d) of x_t at time t () where x_0 is N(m, C), with m (d,) and a full covariance C (d, d)."""
    alpha, sigma = (level.to(x) for level in (schedule.alpha(t), schedule.sigma(t)))
    covariance = alpha**2 * C + sigma**2 * torch.eye(len(m))
    return gradient(MultivariateNormal(alpha * m, covariance).log_prob, x)


def tilted_cases(generator: torch.Generator) -> Iterable[tuple]:
    for schedule in (LinearVP(), CosineVP(), VE(5.0), Flow()):
        for B, d in ((1, 2), (6, 2), (5, 4)):
            A = torch.randn(d, d, generator=generator)
            t = 0.2 + 0.5 * torch.rand((), generator=generator)
            yield (torch.randn(B, d, generator=generator), t, torch.randn(d, generator=generator),
                   A @ A.T / d + 0.2 * torch.eye(d), schedule)


def solved_with(covariance, centre=lambda alpha, m: alpha * m):
    """A function of the closing task's signature from covariance(alpha, sigma, C, I) and centre(alpha, m)."""

    def wrong(x, t, m, C, schedule):
        alpha, sigma = schedule.alpha(t).to(x), schedule.sigma(t).to(x)
        return torch.linalg.solve(covariance(alpha, sigma, C, torch.eye(len(m))), (centre(alpha, m) - x).T).T

    return wrong


def noisy_covariance(alpha, sigma, C, eye):
    return alpha**2 * C + sigma**2 * eye


def entry_by_entry(x, t, m, C, schedule):
    alpha, sigma = schedule.alpha(t).to(x), schedule.sigma(t).to(x)
    return (alpha * m - x) / noisy_covariance(alpha, sigma, C, torch.eye(len(m))).diagonal()


TILTED = Exercise(
    id="1.6", title="A tilted Gaussian under any schedule", reference=tilted_score, cases=tilted_cases, rtol=1e-3, atol=1e-4,
    mistakes=[
        Mistake("noise forgotten", solved_with(lambda a, b, C, eye: C, lambda alpha, m: m),
                "that is the score of the clean data; what is asked for is the score of x_t, data plus noise"),
        Mistake("covariance of the clean data", solved_with(lambda a, b, C, eye: C),
                "that is the spread of the data; where does the noise enter the covariance of x_t?"),
        Mistake("noise left out of the covariance", solved_with(lambda a, b, C, eye: a**2 * C),
                "that is the covariance of alpha x_0 alone; x_t has a second, independent part"),
        Mistake("data not shrunk", solved_with(lambda a, b, C, eye: C + b**2 * eye),
                "x_0 is shrunk by alpha before the noise is added; what does that do to its covariance?"),
        Mistake("mean not scaled", solved_with(noisy_covariance, lambda alpha, m: m),
                "your density is centred at m; where is the mean of x_t = alpha x_0 + sigma eps?"),
        Mistake("covariance scaled by alpha", solved_with(lambda a, b, C, eye: a * C + b**2 * eye),
                "the covariance of alpha x_0 is not alpha C: variances scale with the square"),
        Mistake("standard deviation for variance", solved_with(lambda a, b, C, eye: a**2 * C + b * eye),
                "to the covariance you added the standard deviation of the noise; covariances of independent parts add"),
        Mistake("noise on every entry", solved_with(lambda a, b, C, eye: a**2 * C + b**2),
                "you added the noise's variance to every entry of C; independent coordinates have no covariance"),
        Mistake("coordinates taken one by one", entry_by_entry,
                "you divide each coordinate by its own variance; the coordinates are correlated, so the inverse matrix is due"),
        Mistake("points away from the mean", lambda *case: -solved_with(noisy_covariance)(*case),
                "your arrows point away from the mean; compare with exercise 1.1"),
        Mistake("covariance for its inverse", lambda x, t, m, C, schedule: (
            schedule.alpha(t).to(x) * m - x) @ noisy_covariance(schedule.alpha(t).to(x), schedule.sigma(t).to(x), C, torch.eye(len(m))),
                "you multiply by the covariance; in the exponent stands its inverse: along a short axis the score is long"),
        Mistake("mean forgotten", solved_with(noisy_covariance, lambda alpha, m: 0 * m),
                "m does not enter: all your arrows point to the origin"),
        Mistake("sign of the mean", solved_with(noisy_covariance, lambda alpha, m: -alpha * m),
                "the difference in the exponent is x - a; with you it is x + a"),
        Mistake("half", lambda *case: solved_with(noisy_covariance)(*case) / 2,
                "half the score: what becomes of the 1/2 when you differentiate the quadratic form?"),
        Mistake("standard deviations", solved_with(lambda a, b, C, eye: a * C + b * eye),
                "neither alpha nor sigma is squared: a covariance is a mean of *products*, so each factor enters twice"),
    ],
    tips=["A linear map of Gaussians is Gaussian: write down mean and covariance of x_t = alpha x_0 + sigma eps first",
          "The exponent is -(x - a)' S^-1 (x - a)/2; torch.linalg.solve(S, y.T).T applies S^-1 to every row of y"],
)

EXERCISES = [GAUSSIAN, MIXTURE, SLICED, DENOISING, TWEEDIE, TILTED]

PREDICTIONS = [
    Prediction("1.1", answer="c", because={
        "a": "The score is not a vector to the nearest mode: that holds for a single Gaussian, where it is the distance over the "
             "variance.",
        "b": "A low density does not make a long arrow: the score is the gradient of the log-density, and a gradient says how the "
             "density changes, not how low it is.",
        "c": "Both modes pull equally hard in opposite directions. The place is a saddle: a little to the side the pull is strong.",
    }),
    Prediction("1.2", answer="b", because={
        "a": "A larger network would stop at the same value: the exact score itself has this loss.",
        "b": "What remains is the variance of the random target around its mean, and the mean is the score.",
        "c": "Random it is, but regression finds the mean of the target at every point, and that mean is the score.",
    }),
    Prediction("1.3", answer="b", because={
        "a": "A steep place is not a hard one where data are plentiful: the loss averages over the data and spends its effort there.",
        "b": "The loss never asks about a place that no noisy point visits, so whatever stands there is a guess by smoothness.",
        "c": "Smoothness helps between neighbours; it can't tell how suddenly the exact score turns over in the empty strait.",
    }),
    Prediction("1.4", answer="c", because={
        "a": "One basin is right at the first level, but the walkers must also keep up with the levels as these split it in two.",
        "b": "The levels do help, even in a hurry: while the strait is open, walkers drift to the larger island.",
        "c": "The walkers lag behind the levels, and the share freezes half-way when the strait empties.",
    }),
]
