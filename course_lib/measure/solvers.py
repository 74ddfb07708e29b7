# Long: to hold every rival at its best takes finding it, driving it, timing it. Read `solvers`, then what it calls.
"""data/solvers.csv: deterministic samplers of the course, of diffusers and of azula, each library at its best.

Four targets have a denoiser in closed form, and so an exact end of every path; two are networks that the course ships, whose
ends are those of a fine solution. Whatever deterministic sampler and grid a peer exports is found and tried here, so that a
newer version of it needs no change.
"""

import importlib.util
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from .. import data, recipes, text
from ..denoiser import Denoiser, guided
from ..diffusers_bridge import drive, first_ratio
from ..fast_samplers import abm, ddim, dpm_solver_pp, few_steps, fine_grid, midpoint, optimise_grid
from ..ledger import Table, write_table
from ..ode_samplers import euler, heun, rk45
from ..sampling import last, prior, sample
from ..schedules import (
    CosineVP,
    Flow,
    LinearVP,
    equal_angles,
    flow_uniform,
    karras,
    log_snr_to_zero,
    log_snr_uniform,
    quadratic,
    uniform,
)
from ..targets import GaussianMixture, ring
from ..training import device_name
from .emoji import questions


@dataclass(frozen=True)
class SolverRow:
    """A line of data/solvers.csv: how far a deterministic sampler on a time grid ends from the exact solution of the flow."""

    library: str
    solver: str
    grid: str
    evaluations: int
    error: float  # mean distance from the exact end point; of a network, root mean square over that of the end point
    microseconds: float | None  # processor time of a step, without the network, on 16 grey images of 32 x 32
    device: str
    target: str


BUDGETS = (5, 8, 10, 20, 50)
NETWORK_BUDGETS = (5, 8, 10, 20)


# ---------------------------------------------------------------------------------------------- targets
def spiral(k: int = 12) -> GaussianMixture:
    """Twelve unequal Gaussians along a spiral in the plane."""
    i = torch.arange(k, dtype=torch.float64)
    angle, radius = 3 * math.pi * i / k, 0.4 + 1.6 * i / (k - 1)
    weights = 1 + (i * 7) % 5                                                           # 1, 3, 5, 2, 4, ...
    return GaussianMixture(radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), 0.05 + 0.04 * ((i * 5) % 4),
                           weights / weights.sum())


def mixture64(k: int = 10, d: int = 64) -> GaussianMixture:
    """Ten unequal Gaussians in 64 dimensions."""
    g = torch.Generator().manual_seed(64)
    means = torch.randn(k, d, generator=g, dtype=torch.float64)
    weights = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return GaussianMixture(means, torch.linspace(0.1, 0.5, k, dtype=torch.float64), weights / weights.sum())


TARGETS = {"ring": (ring, LinearVP(), 1), "spiral": (spiral, LinearVP(), 4), "mixture64": (mixture64, LinearVP(), 8),
           "mixture64_flow": (mixture64, Flow(), 8)}                       # made how, its schedule, 1/share of the starts


def mean_distance(x: Tensor, y: Tensor) -> float:
    """Mean distance between the rows of x and y (B, d)."""
    return (x - y).norm(dim=1).mean().item()


def end_point(D: Denoiser, x: Tensor, ratio: float) -> Tensor:
    """The exact solution at t = 0 of the flow that passes through x at the noise level sigma/alpha = ratio, at most 1e6."""
    start = D.schedule.time_of_log_snr(-2 * torch.tensor(min(ratio, 1e6), dtype=torch.float64).log()).item()
    return last(dpm_solver_pp, D, x, fine_grid(D.schedule, start, 0.0, 800), order=3).x


class Problem:
    """One target: its denoiser under the clock of CosineVP, which reaches all levels, and the exact end from each of them.

    x (B, d) is what all start from, at whatever level, at variance-preserving scale.
    """

    def __init__(self, name: str, samples: int):
        make, self.schedule, share = TARGETS[name]
        self.name, self.mixture = name, make()
        self.D = self.mixture.denoiser(CosineVP())
        size = max(samples // share, 2), self.mixture.dim
        self.x = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.std = (self.mixture.weights @ (self.mixture.means.square().mean(1) + self.mixture.stds**2)).sqrt().item()
        self.start = (-self.schedule.log_snr(self.schedule.t_max) / 2).exp().item()
        self.exact = cache(lambda ratio: end_point(self.D, self.x, ratio))

    def error(self, x: Tensor, ratio: float) -> float:
        """How far from the exact ends x is, that started at the level `ratio`; infinite if it is not finite.

        Infinite also for a start at less than half the noise of the schedule's own: five "leading" steps of diffusers begin
        at t = 0.8, where the hardest part of the way is behind, and what they leave out would not be counted.
        """
        error = mean_distance(x.double(), self.exact(ratio)) if ratio > self.start / 2 else math.inf
        return error if math.isfinite(error) else math.inf


# ---------------------------------------------------------------------------------------------- the course
OURS = {"euler": partial(sample, step=euler), "ddim": partial(sample, step=ddim), "dpm_solver_pp, order 2": dpm_solver_pp,
        "dpm_solver_pp, order 3": partial(dpm_solver_pp, order=3), "heun": partial(sample, step=heun),
        "midpoint": partial(sample, step=midpoint), **{f"abm, order {k}": partial(abm, order=k) for k in range(2, 7)}}
FITTED = tuple(OURS)[:4]  # solvers for which a grid is fitted to the ring, for chapter 04


def grids(std: float) -> dict[str, Callable]:
    """The grids of the course by name, for data of this standard deviation: n and a schedule to n + 1 times."""
    to_t_min = {"uniform": uniform, "quadratic": quadratic, "log-SNR": log_snr_uniform, "karras": karras,
                "equal angles": partial(equal_angles, std=std), "equal angles, std 0.5": equal_angles}
    return to_t_min | {f"{name}, to 0": partial(_to_zero, grid) for name, grid in to_t_min.items()} | {
        "log-SNR and 0": log_snr_to_zero,
        **{f"flow-uniform, scale {scale:g}, rho {rho:g}": partial(flow_uniform, scale=scale, rho=rho)
           for scale in (0.7, 1.0, 2.0, 4.0) for rho in (1.0, 1.25, 1.6, 2.0)}}


def _to_zero(grid: Callable, n: int, schedule) -> Tensor:
    return torch.cat([grid(n, schedule)[:-1], torch.zeros(1, dtype=torch.float64)])


def steps_of(solver: str, k: int, grid: str) -> int:
    """How many steps one of OURS takes for at most k evaluations; Heun's last is an Euler step where it ends at 0."""
    euler_at_last = solver == "heun" and (grid.endswith(" 0") or grid.startswith("flow"))
    return (k + euler_at_last) // 2 if solver in ("heun", "midpoint") else k


def _ours(problem: Problem) -> Iterator[SolverRow]:
    D, schedule = problem.mixture.denoiser(problem.schedule), problem.schedule
    x, ratio = problem.x * schedule.sigma(schedule.t_max), problem.start
    x = x * (1 + ratio**-2) ** 0.5 if isinstance(schedule, Flow) else problem.x
    row = partial(_row, problem.name, "course")
    others = torch.randn(512, problem.mixture.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, sampler in OURS.items():
        for k in BUDGETS:
            candidates = {grid: make(steps_of(name, k, grid), schedule) for grid, make in grids(problem.std).items()}
            if problem.name == "ring" and name in FITTED and k in (5, 10, 20):
                candidates["optimised"] = optimise_grid(D, others, k, sampler, end=0.0, std=problem.std)
            for grid, ts in candidates.items():
                result = last(sampler, D, x, ts)
                yield row(name, grid, result.nfe, problem.error(result.x, ratio))
    for k in BUDGETS:
        yield row(*FIXED["course"][0], k, problem.error(last(few_steps, D, x, k).x, ratio))
    for tolerance in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        result = last(rk45, D, x, uniform(1, schedule), rtol=tolerance, atol=tolerance)
        if result.nfe <= max(BUDGETS):
            yield row("rk45", f"adaptive, {tolerance:g}", result.nfe, problem.error(result.x, ratio))


# ---------------------------------------------------------------------------------------------- diffusers
# The options of a scheduler that choose a method, tried together, and those that choose how it ends, tried one at a time: by
# their name or, where names mean several things, by what else they may be.
METHODS = {"solver_order": (1, 2, 3), "predictor_order": (1, 2, 3), "corrector_order": (1, 2, 3), "predict_x0": (True, False),
           "skip_prk_steps": (False, True)}
FAMILIES = (("midpoint", "heun"), ("bh2", "bh1"), ("dpmsolver++", "dpmsolver"), ("data_prediction", "noise_prediction"),
            ("unipc", "euler"))
ENDS = {"euler_at_final": True, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
PLAIN = {"clip_sample": False, "tau_func": lambda t: 0, "eta": 0.0, "stages": 1}                       # no clipping, no noise
SPACINGS = ("linspace", "leading", "trailing")
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas",
          "log-SNR": "use_lu_lambdas"}
NAMES = {"DPMSolverMultistep": "DPM-Solver++", "DPMSolverSinglestep": "DPM-Solver++ single step", "UniPCMultistep": "UniPC",
         "DEISMultistep": "DEIS", "HeunDiscrete": "Heun", "LMSDiscrete": "LMS", "EDMDPMSolverMultistep": "EDM DPM-Solver++"}


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers with all that it can be told: its options by grid, and the variants of its method."""

    kind: type
    variants: tuple[dict, ...]
    grids: dict[str, dict]

    def name(self, variant: dict) -> str:
        """DPM-Solver++, order 2, and so on: one name for all variants that are no other method."""
        name = NAMES.get(short := self.kind.__name__.removesuffix("Scheduler"), short)
        name = name.replace("++", "") if variant.get("algorithm_type") == "dpmsolver" else name
        return f"{name}, order {variant['solver_order']}" if "solver_order" in variant else name

    def run(self, variant: dict, grid: str, k: int, D: Denoiser, x: Tensor, cond: Tensor | None = None):
        """With at most k evaluations: sigma/alpha at its start, its end, how many; ValueError where that cannot be done."""
        try:
            scheduler = self.kind(**variant, **self.grids[grid])
            _set_within(scheduler, k)
            return first_ratio(scheduler).item(), *drive(scheduler, D, x, cond)
        except (NotImplementedError, IndexError, ZeroDivisionError, AssertionError, RuntimeError) as error:
            raise ValueError(f"{self.kind.__name__} cannot take {variant} on {grid} for {k}") from error


@cache
def diffusers_peers(flow: bool) -> tuple[dict[str, Peer], dict[str, str]]:
    """All deterministic schedulers that diffusers exports, for a schedule like Flow or the others; and why not the rest."""
    import diffusers

    diffusers.logging.set_verbosity_error()                              # its remarks on configurations it mends itself
    found, refused = {}, {}
    for name in (name for name in dir(diffusers) if name.endswith("Scheduler")):
        kind = getattr(diffusers, name)
        try:
            peer = _peer(kind, flow)
            _need_same_without_seed(peer)
            found[name] = peer
        except (ValueError, TypeError, ImportError, AttributeError) as reason:
            refused[name] = " ".join(str(reason).split()) or type(reason).__name__
    return found, refused


def _peer(kind: type, flow: bool) -> Peer:
    takes = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
    if kind.__module__.startswith("diffusers.utils.dummy"):
        raise ImportError("a stand-in for what is not installed")
    if must := {name for name, default in takes.items() if default is inspect.Parameter.empty} - {"self", "kwargs"}:
        raise ValueError(f"it cannot be made without {', '.join(sorted(must))}")
    common = {name: value for name, value in PLAIN.items() if name in takes}
    of_flow = takes.get("use_flow_sigmas", "prediction_type" not in takes and hasattr(kind(**common), "sigmas"))
    if of_flow > flow or flow > (of_flow or "use_flow_sigmas" in takes):
        raise ValueError("it has no levels of this schedule")
    if flow and "prediction_type" in takes:
        common |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    options = {name: METHODS.get(name) or next((family for family in FAMILIES if default in family), None)
               for name, default in takes.items()}
    options = {name: values for name, values in options.items() if values}
    methods = [common | dict(zip(options, values)) for values in itertools.product(*options.values())]
    variants = methods + [method | {name: value} for name, value in ENDS.items() if name in takes for method in methods]
    if flow:
        shift = "flow_shift" if "flow_shift" in takes else "shift"
        made = {"uniform": {}} | {f"shifted by {by:g}": {shift: by} for by in (0.5, 3.0) if shift in takes}
        made |= {name: {flag: True} for name, flag in SIGMAS.items() if flag in takes and "use_flow_sigmas" not in takes}
        return Peer(kind, tuple(variants), made)
    made = {name: {"timestep_spacing": name} for name in SPACINGS if "timestep_spacing" in takes}
    made |= {name: {flag: True} for name, flag in SIGMAS.items() if flag in takes}
    made |= {name: {"sigma_schedule": name} for name in ("karras", "exponential") if "sigma_schedule" in takes}
    return Peer(kind, tuple(variants), made if {"timestep_spacing", "sigma_schedule"} & set(takes) else {"uniform": {}} | made)


def _need_same_without_seed(peer: Peer) -> None:
    ends, D = [], GaussianMixture([[1.0, -0.5]], 0.3).denoiser(CosineVP())
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ends.append(peer.run(peer.variants[0], next(iter(peer.grids)), 4, D, torch.ones(1, 2).double())[1])
    if not torch.equal(*ends):
        raise ValueError("it draws noise")


def _set_within(scheduler, k: int) -> None:
    """Set as many timesteps as k evaluations allow: fewer steps where one takes several."""
    steps = k
    scheduler.set_timesteps(steps)
    while len(scheduler.timesteps) > k:
        steps -= max(1, (len(scheduler.timesteps) - k) // 2)
        scheduler.set_timesteps(steps)


def _diffusers(problem: Problem) -> Iterator[SolverRow]:
    """The best of all variants of each method on each grid; at 50 evaluations, of those that were the best at fewer."""
    for peer in diffusers_peers(isinstance(problem.schedule, Flow))[0].values():
        for grid in peer.grids:
            best, variants = {}, peer.variants
            for k in BUDGETS:
                for variant in variants:
                    try:
                        ratio, end, evaluations = peer.run(variant, grid, k, problem.D, problem.x)
                    except ValueError:                                       # few steps are too few for some variants
                        continue
                    row = _row(problem.name, "diffusers", peer.name(variant), grid, evaluations, problem.error(end, ratio))
                    key = row.solver, k
                    if key not in best or row.error < best[key][0].error:
                        best[key] = row, variant
                if k == BUDGETS[-2]:
                    variants = [variant for variant in variants if any(variant is kept for _, kept in best.values())]
            yield from (row for row, _ in best.values())


# ---------------------------------------------------------------------------------------------- azula
def azula_peers() -> dict[str, Callable]:
    """All deterministic samplers that azula exports, in each of their orders, by name: (denoiser, steps=, ...) to a sampler."""
    import azula.sample

    found = {}
    for name in azula.sample.__all__:
        kind, short = getattr(azula.sample, name), name.removesuffix("Sampler")
        if short in ("", "DDPM", "PC"):                                      # the base, and two that draw noise
            continue
        takes = inspect.signature(kind.__init__).parameters
        more = {"eta": 0.0} if "eta" in takes else {}
        found |= {f"{short}, order {order}": partial(kind, order=order, **more) for order in (1, 2, 3, 4)} if "order" in takes \
            else {short: partial(kind, **more)}
    return found


def azula_grids(schedule) -> dict[str, tuple[Callable, dict]]:
    """azula's schedules, whose clocks are its grids, and the problem's own: t -> (alpha, sigma), and where it is walked."""
    import azula.noise as noise

    straight = {name: getattr(noise, f"{name}Schedule") for name in ("Rectified", "Decay")}
    other = {name: getattr(noise, f"{name}Schedule") for name in ("VP", "Cosine", "VE")}
    made = {name: (kind(), {}) for name, kind in (straight if isinstance(schedule, Flow) else straight | other).items()}
    low = math.exp(-5)                                                       # where our grids start, and end
    levels = {name: {"alpha_min": low, "sigma_min": low} for name in made} | {"VE": {"sigma_min": low, "sigma_max": 1 / low}}
    made |= {f"{name}, our levels": (type(kind)(**levels[name]), {}) for name, (kind, _) in made.items()}
    return made | {"the model's time": (lambda t: (schedule.alpha(t), schedule.sigma(t)),
                                        {"start": schedule.t_max, "stop": schedule.t_min})}


def _azula(problem: Problem) -> Iterator[SolverRow]:
    import azula.denoise

    class Exact(azula.denoise.Denoiser):
        def __init__(self, levels):
            super().__init__()
            self.schedule = levels

        def forward(self, x, t, **kwargs):
            alpha, sigma = self.schedule(t)
            angle = torch.atan2(sigma, alpha)                                # CosineVP's clock, a quarter of a circle
            return azula.denoise.DiracPosterior(problem.D(x / (alpha**2 + sigma**2).sqrt(), angle * 2 / math.pi))

    for (name, kind), (grid, (levels, ends)) in itertools.product(azula_peers().items(), azula_grids(problem.schedule).items()):
        for k in BUDGETS:
            steps = k // 2 if name == "Heun" else k
            sampler = kind(Exact(levels), steps=steps, silent=True, dtype=torch.float64, **ends)
            alpha, sigma = levels(sampler.timesteps[0])
            x = sampler(problem.x * (alpha**2 + sigma**2).sqrt())
            evaluations = 2 * steps if name == "Heun" else steps
            yield _row(problem.name, "azula", name, grid, evaluations, problem.error(x, (sigma / alpha).item()))


# ---------------------------------------------------------------------------------------------- networks
SHORT = ("DPM-Solver++, order 2", "UniPC, order 2", "UniPC, order 3", "DEIS, order 3")      # the best of the peers in few steps
SHORT_GRIDS = ("linspace", "trailing", "karras", "exponential", "log-SNR")
OUR_SHORT = ("dpm_solver_pp, order 2", "abm, order 2", "abm, order 3", "abm, order 4", "abm, order 5")
OUR_SHORT_GRIDS = ("log-SNR and 0", "karras", "flow-uniform, scale 2, rho 1.25", "flow-uniform, scale 4, rho 1.6",
                   "flow-uniform, scale 4, rho 2")


def networks(samples: int) -> dict[str, tuple[Denoiser, Tensor, Tensor]]:
    """Networks that the course ships: the denoiser, starts (B, ...), conditions (B, ...)."""
    pictures, latents = max(samples // 85, 2), max(samples // 256, 2)       # 24 and 8 of 2048
    captions = torch.stack([text.caption(caption)[0] for caption in questions(latents)["seen"][0]])
    clothes, emoji = recipes.load("fashion_teacher", "cpu"), guided(recipes.load("emoji_latent_teacher", "cpu"), 2.0)
    start = torch.Generator().manual_seed(0)
    return {"clothes": (clothes, prior(clothes, (pictures, 1, 28, 28), start), torch.arange(pictures) % 10),
            "emoji": (emoji, prior(emoji, (latents, 4, 16, 16), start), captions)}


@torch.no_grad()
def _networks(samples: int, theirs: bool) -> Iterator[SolverRow]:
    for target, (D, x, cond) in networks(samples).items():
        def end(ratio, D=D, x=x, cond=cond):
            start = D.schedule.time_of_log_snr(-2 * torch.tensor(ratio, dtype=torch.float64).log()).item()
            ts = torch.cat([fine_grid(D.schedule, start, D.schedule.t_min, 100), torch.zeros(1, dtype=torch.float64)])
            return last(dpm_solver_pp, D, x, ts, order=3, cond=cond).x

        end = cache(end)

        def error(found, ratio, end=end):
            return ((found - end(ratio)).square().mean() / end(ratio).square().mean()).sqrt().item()

        ratio = (-D.schedule.log_snr(D.schedule.t_max) / 2).exp().item()
        for name, grid, k in itertools.product(OUR_SHORT, OUR_SHORT_GRIDS, NETWORK_BUDGETS):
            found = last(OURS[name], D, x, grids(0.5)[grid](k, D.schedule), cond=cond).x
            yield _row(target, "course", name, grid, k, error(found, ratio))
        for k in NETWORK_BUDGETS:
            yield _row(target, "course", *FIXED["course"][0], k, error(last(few_steps, D, x, k, cond=cond).x, ratio))
        for peer in diffusers_peers(False)[0].values() if theirs else ():
            names = {peer.name(variant): variant for variant in reversed(peer.variants)}       # the defaults of each are first
            for name, grid, k in itertools.product(names, peer.grids, NETWORK_BUDGETS):
                if name in SHORT and grid in SHORT_GRIDS:
                    level, found, evaluations = peer.run(names[name], grid, k, D, x, cond)
                    yield _row(target, "diffusers", name, grid, evaluations, error(found, level))


# ---------------------------------------------------------------------------------------------- their own time
class Free:
    """A denoiser that costs nothing, so that what remains is the sampler's own time."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return x


def own_times(runs: dict[tuple[str, str], Callable[[], object]], repeats: int = 15) -> dict[tuple[str, str], float]:
    """The least processor time of several runs of 50 steps, in microseconds a step.

    Unlike the clock's, it counts no waiting for other programs; and the runs take turns, so that a slow moment of the machine
    falls on all alike.
    """
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], (time.process_time() - start) / 50 * 1e6)
    return least


def _our_runs() -> dict[tuple[str, str], Callable[[], object]]:
    free, images = Free(LinearVP()), torch.randn(16, 1, 32, 32)
    return {("course", name): partial(last, sampler, free, images, uniform(50, free.schedule))
            for name, sampler in OURS.items()}


def _their_runs() -> dict[tuple[str, str], Callable[[], object]]:
    import diffusers

    images = torch.randn(16, 1, 32, 32)
    kinds = {"DDIM": diffusers.DDIMScheduler(clip_sample=False), "Heun": diffusers.HeunDiscreteScheduler(),
             "LMS": diffusers.LMSDiscreteScheduler(), "DPM-Solver++, order 2": diffusers.DPMSolverMultistepScheduler(),
             "UniPC, order 2": diffusers.UniPCMultistepScheduler(), "DEIS, order 2": diffusers.DEISMultistepScheduler()}
    return {("diffusers", name): partial(_run_free, scheduler, images) for name, scheduler in kinds.items()}


def _run_free(scheduler, x: Tensor) -> None:
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(x, t, x).prev_sample


# ---------------------------------------------------------------------------------------------- all of it
def _row(target: str, library: str, solver: str, grid: str, evaluations: int, error: float) -> SolverRow:
    return SolverRow(library, solver, grid, evaluations, error, None, device_name(torch.device("cpu")), target)


def solvers(device=None, samples: int | None = None, seeds: int | None = None) -> list[SolverRow]:
    """Deterministic samplers on four known solutions and two networks: the course's and, where installed, its peers'.

    Writes data/solvers.csv; some twenty minutes. Always on the CPU; `samples` starts (2048) on the ring and a share of them on
    the other targets, of which there is one set: `seeds` counts for nothing.
    """
    samples = samples or 2048
    peers = {name: part for name, part in (("diffusers", _diffusers), ("azula", _azula)) if importlib.util.find_spec(name)}
    own, rows = own_times(_our_runs() | (_their_runs() if "diffusers" in peers else {})), []
    for target in TARGETS:
        problem = Problem(target, samples)
        found = [row for part in (_ours, *peers.values()) for row in part(problem)]
        rows += _best(found)
    rows += _networks(samples, "diffusers" in peers)
    rows = [replace(row, microseconds=own.get((row.library, row.solver))) for row in rows if math.isfinite(row.error)]
    write_table(data.ROOT / "data" / "solvers.csv", rows)
    return rows


def _best(rows: Iterable[SolverRow]) -> list[SolverRow]:
    """The best grid of each solver at each number of evaluations, with and without fitting, and what is FIXED."""
    best = {}
    for row in rows:
        key = row.library, row.solver, row.evaluations, row.grid == "optimised"
        best[key] = min(best.get(key, row), row, key=lambda row: row.error)
    kept = set(best.values())
    return [row for row in rows if row in kept or (row.solver, row.grid) in FIXED[row.library]]


# ---------------------------------------------------------------------------------------------- who leads
# What one would take without trying: a solver and its grid, the second where the schedule is like Flow.
FIXED = {"course": (("few_steps", "its own"),) * 2,
         "diffusers": (("DPM-Solver++, order 2", "karras"), ("FlowMatchEulerDiscrete", "uniform")),
         "azula": (("DDIM", "VP"), ("DDIM", "Rectified"))}


def standings(rows: Iterable[SolverRow], fixed: bool = False) -> dict[tuple[str, int], dict[str, SolverRow]]:
    """By target and budget, the best row of each library with at most so many evaluations; fitted grids do not count.

    fixed: only of the solver and grid that is FIXED for each.
    """
    found = {}
    for row, k in itertools.product(rows, BUDGETS):
        if row.evaluations > k or row.grid == "optimised":
            continue
        if fixed and (row.solver, row.grid) != FIXED[row.library]["flow" in row.target]:
            continue
        best = found.setdefault((row.target, k), {})
        if row.library not in best or row.error < best[row.library].error:
            best[row.library] = row
    return {key: best for key, best in found.items() if key[1] in NETWORK_BUDGETS or key[0] in TARGETS}


def ratio(best: dict[str, SolverRow]) -> float:
    """Our error over that of the best of the others: below 1 we lead."""
    return best["course"].error / min(row.error for library, row in best.items() if library != "course")


def standings_table(rows: Iterable[SolverRow]) -> Table:
    """The standings to read: at our best against theirs, and with what is FIXED."""
    rows = list(rows)
    set_before = standings(rows, fixed=True)
    return Table(("target", "evaluations", "course", "best of the others", "ratio", "fixed: course", "diffusers", "azula"), [
        (target, str(k), *(f"{row.error:.4g} {row.solver}, {row.grid}" for row in (best["course"], min(
            (row for library, row in best.items() if library != "course"), key=lambda row: row.error))), f"{ratio(best):.2f}",
         *(f"{set_before[target, k][library].error:.4g}" if library in set_before.get((target, k), {}) else "-"
           for library in FIXED))
        for (target, k), best in standings(rows).items()])
