"""What is tried on a GPU: cases, each a function that takes a device, makes its arguments there and returns what is compared.

Steps, grids, schedules and metrics are found by their signatures; all else stands in a table. Losses have a table of their own,
with a model and data, for they are also trained.
"""

import importlib
import inspect
import pkgutil

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn

import course_lib
from course_lib import metrics, recipes, schedules, targets, text
from course_lib.autoencoders import (
    KLAutoencoder,
    LinearAutoencoder,
    VQAutoencoder,
    encode_all,
    fit_scale,
    kl_loss,
    ppca,
    vq_loss,
)
from course_lib.consistency import (
    FlowMap,
    Trainee,
    closing,
    continuous_loss,
    distillation_loss,
    flow_map_step,
    mean_flow_loss,
    neighbours,
    path_loss,
    training_loss,
)
from course_lib.denoiser import (
    EDM,
    X0,
    Eps,
    FlowVelocity,
    Preconditioned,
    Student,
    V,
    eps,
    guided,
    noised,
    score,
    told,
    tweedie,
    velocity,
)
from course_lib.diffusers_bridge import drive
from course_lib.fast_samplers import abm, ddim, ddim_eta, dpm_solver_pp, dpm_solver_pp_sde, few_steps, midpoint, optimise_grid
from course_lib.networks import (
    MLP,
    Captions,
    Classifier,
    ColourFeatures,
    DiT,
    UNet,
    Upscaler,
)
from course_lib.ode_samplers import bits_per_dim, dequantise, encode, exact_divergence, hutchinson, log_likelihood, rk45
from course_lib.parallel import converged, parareal, picard
from course_lib.plotting import image_grid, image_rows, paths, scatter
from course_lib.progressive import guidance_loss, halving_loss, midpoint_target, two_step_target
from course_lib.sampling import draws, final, last, prior, sample
from course_lib.schedules import CosineVP, Flow, log_snr_to_zero, uniform
from course_lib.score_matching import (
    annealed_langevin,
    denoising_score_loss,
    divergence,
    implicit_loss,
    langevin,
    sliced_loss,
)
from course_lib.sde_samplers import ancestral, predictor_corrector
from course_lib.speculation import speculative

LEFT_OUT = ("classroom", "measure", "widgets", "files", "ledger", "data", "recipes.images", "recipes.registry",
            "recipes.weights")
MODULES = [importlib.import_module(info.name) for info in pkgutil.walk_packages(course_lib.__path__, "course_lib.")
           if not info.name.removeprefix("course_lib.").startswith(LEFT_OUT)]


def public(module) -> dict:
    """The functions and classes that a module defines, by their public names."""
    return {name: thing for name, thing in vars(module).items()
            if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "") == module.__name__}


def with_arguments(*names: str, modules=MODULES) -> dict:
    """The public functions whose first arguments have these names."""
    return {name: thing for module in modules for name, thing in public(module).items() if inspect.isfunction(thing)
            and tuple(inspect.signature(thing).parameters)[:len(names)] == names}


# ---------------------------------------------------------------------------------------------- what cases are made of
def normal(d, *shape: int, seed: int = 0, dtype=torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(d)


def gen(d) -> torch.Generator:
    return torch.Generator(d).manual_seed(0)


def awake(d, build) -> nn.Module:
    """A model from a fixed seed, on the device; layers that start at zero do not."""
    torch.manual_seed(0)
    model = build()
    for i, p in enumerate(model.parameters()):
        if not p.any():
            p.data.copy_(0.1 * normal("cpu", *p.shape, seed=i))
    return model.to(d)


def points(d, numbers: int = 0, kind: type = Preconditioned, parameterisation=None, schedule=None) -> Preconditioned:
    """A denoiser of points with eight labels."""
    network = awake(d, lambda: MLP(width=16, depth=1, classes=8, numbers=numbers, fastest=8.0))
    return kind(network, schedule or CosineVP(), parameterisation or V())


def pictures(d) -> Preconditioned:
    return Preconditioned(awake(d, lambda: UNet(widths=(8, 16), depth=1, classes=8)), CosineVP(), V()).to(d)


def transformer(d, shape: tuple[int, ...]) -> DiT:
    return awake(d, lambda: DiT(1, 8, 4, 16, 1, 2, captions=Captions(normal("cpu", 9, 5), 12, 16, shape)))


def autoencoder(d) -> KLAutoencoder:
    return awake(d, lambda: KLAutoencoder(width=8, depth=1))


def codes(d) -> VQAutoencoder:
    return awake(d, lambda: VQAutoencoder(codes=8, width=8, depth=1))


def of_sentences(d) -> text.SentenceAutoencoder:
    return awake(d, lambda: text.SentenceAutoencoder(text.vocabulary().vectors[:50], width=16, depth=1))


def labels(d) -> Tensor:
    return torch.tensor([0, 1, -1, 3, 4]).to(d)


GRID = uniform(4, CosineVP())
RING = targets.ring()


def exact(schedule=None):
    return RING.denoiser(schedule or CosineVP())


def over(*cases):
    """Several cases as one."""
    return lambda d: [case(d) for case in cases]


# ---------------------------------------------------------------------------------------------- the cases
STEPS = with_arguments("D", "x", "t", "s", "z", "cond") | {
    "ddim_eta, half": ddim_eta(0.5), "predictor_corrector": predictor_corrector(),
    "predictor_corrector with two": predictor_corrector(ddim, 2)}
SCHEDULES = {name: kind for name, kind in public(schedules).items() if isinstance(kind, type) and name != "Schedule"}
CASES = {}


def step_case(step, schedule):
    """A step of an exact denoiser over a grid there and one that is not, in two precisions."""
    D = RING.denoiser(schedule)
    return lambda d: [final(D, normal(d, 5, 2, dtype=dtype), ts, step, generator=gen(d), cond=labels(d)).x
                      for ts, dtype in ((uniform(2, schedule), torch.float64), (uniform(2, schedule).to(d), torch.float32))]


def network_case(step):
    """A step of networks over a grid there and one that is not, and with times of its own for each row."""
    z = (step.draws, 5, 2) if getattr(step, "draws", 1) > 1 else (5, 2)

    def case(d):
        D = points(d, 1, FlowMap) if step is flow_map_step else points(d)
        both = [D] if step is flow_map_step else [D, guided(D, torch.ones(5).to(d))]
        t, s = torch.linspace(0.9, 0.5, 5).to(d), torch.linspace(0.8, 0.1, 5).to(d)
        return step(D, normal(d, 5, 2), t, s, normal(d, *z)), [
            final(each, normal(d, 5, 2), ts, step, generator=gen(d), cond=labels(d)).x
            for each in both for ts in (GRID[:3], GRID[:3].to(d))]

    return case


for name, step in STEPS.items():
    CASES[name] = network_case(step)
    if step is not flow_map_step:
        CASES |= {f"{name}, {kind}": step_case(step, SCHEDULES[kind]()) for kind in SCHEDULES}
for name, grid in with_arguments("n", "schedule", modules=[schedules]).items():
    CASES[name] = lambda d, grid=grid: [final(exact(kind()), normal(d, 5, 2), grid(4, kind()).to(d), ddim).x
                                        for kind in SCHEDULES.values()]
for name, kind in SCHEDULES.items():
    CASES[name] = lambda d, kind=kind: [
        f(torch.tensor([0.1, 0.5, 0.9]).to(d)) for schedule in [kind()] for f in (
            schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion2, schedule.log_snr,
            lambda t, schedule=schedule: schedule.time_of_log_snr(10 * t - 5))]
for name, metric in with_arguments("x", "y", modules=[metrics]).items():
    CASES[name] = lambda d, metric=metric: metric(normal(d, 200, 2), normal(d, 200, 2, seed=1))


@draws(1)
def noisy_ddim(D, x, t, s, z=None, cond=None):
    return ddim(D, x, t, s, cond=cond) + 0.1 * z


def sweeps(method, **options):
    """A parallel method on grids here and there, with labels and with what a guided network holds for each row."""
    def case(d):
        each = torch.ones(5).to(d)
        runs = ((exact(), GRID, predictor_corrector()), (exact(), GRID.to(d), ancestral),
                (guided(points(d), each), GRID.to(d), ddim), (told(points(d, 1), each), GRID, ancestral))
        return [converged(method(D, normal(d, 5, 2), ts, step, generator=gen(d), cond=labels(d), **options)).trajectory
                for D, ts, step in runs]

    return case


def bridge(name):
    def case(d):
        diffusers = pytest.importorskip("diffusers")
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(4, device=d)
        return drive(scheduler, exact(), normal(d, 5, 2))[0]

    return case


def likelihood(d):
    x0 = RING.sample(5, torch.Generator().manual_seed(0)).to(d, torch.float32)
    loose = {"rtol": 0.1, "atol": 0.1}
    found = [log_likelihood(exact(), x0, how, **loose) for how in (exact_divergence, hutchinson(2), hutchinson(2, gen(d)))]
    ends = log_likelihood(exact(), x0, **loose, prior=RING.marginal(CosineVP(), CosineVP().t_max).log_prob)
    return *found, ends, bits_per_dim(ends, (2,)), log_likelihood(points(d), x0, **loose, cond=labels(d))


def show(draw):
    """A figure; what is compared is that there is one."""
    def case(d):
        draw(d)
        drawn = len(plt.get_fignums())
        plt.close("all")
        return drawn

    return case


def latents(d):
    found = []
    for model, rows in ((autoencoder(d), normal(d, 9, 3, 8, 8)), (codes(d), normal(d, 9, 3, 8, 8)),
                        (awake(d, lambda: LinearAutoencoder(5, 2, 0.1)), normal(d, 9, 5))):
        for where in (d, "cpu"):
            fit_scale(model, rows.to(where))
            z = encode_all(model, rows.to(where))
            assert z.device.type == torch.device(where).type
            found += [z.to(d), model.decode(z.to(d))]
    return found, [codes(d).usage(normal(where, 9, 3, 8, 8)) for where in ("cpu", d)]


def sentences(d):
    model, numbers = of_sentences(d), NUMBERS[:3]
    z = encode_all(model, numbers)
    words = model.words(z.to(d))
    return (words, text.rounded(normal(d, 3, 4, 5), normal(d, 9, 5)), text.accuracy(words, numbers.to(d)),
            len(text.sentence(words[0])), recipes.words_right(model, numbers))


CASES |= {
    "ddim_eta": lambda d: final(exact(), normal(d, 5, 2), GRID, ddim_eta(0.5), generator=gen(d)).x,
    "angles": lambda d: schedules.time_of_angle(schedules.angle(GRID.to(d), CosineVP()), CosineVP()),
    "parameterisations": lambda d: [points(d, parameterisation=p)(normal(d, 5, 2), t, labels(d)) for p in (
        X0(), Eps(), V(), FlowVelocity(), EDM()) for t in (0.5, torch.tensor(0.5).to(d), torch.full((5,), 0.5).to(d))],
    "conversions": lambda d: [f(D, normal(d, 5, 2), t) for D in (exact(), points(d)) for f in (score, eps, velocity)
                              for t in (0.5, torch.full((5,), 0.5).to(d), torch.full((5,), 0.5))],
    "tweedie": lambda d: tweedie(normal(d, 5, 2), normal(d, 5, 2, seed=1), CosineVP(), 0.5),
    "guidance": lambda d: [final(guided(points(d), w, (0.1, 0.9)), normal(d, 5, 2), GRID, ddim, cond=labels(d)).x
                           for w in (1.0, torch.tensor(1.0), torch.ones(5), torch.ones(5).to(d), torch.tensor(1.0).to(d))],
    "told": lambda d: [final(told(points(d, 1), w), normal(d, 5, 2), GRID, ddim, cond=labels(d)).x
                       for w in (1.0, torch.tensor(1.0), torch.ones(5), torch.ones(5).to(d), torch.tensor(1.0).to(d))],
    "student": lambda d: Student.of(points(d))(normal(d, 5, 2), 0.5),
    "noise that is given": lambda d: list(sample(exact(), normal(d, 5, 2), GRID, ancestral, noise=normal("cpu", 4, 5, 2))),
    "prior": lambda d: prior(exact(), (5, 2), gen(d), device=d),
    "dpm_solver_pp": over(*(lambda d, order=order, ts=ts: [
        last(dpm_solver_pp, D, normal(d, 5, 2), ts.to(where), order=order, cond=labels(d)).x
        for where in ("cpu", d) for D in (exact(), points(d))]
        for order in (1, 2, 3) for ts in (GRID, log_snr_to_zero(4, CosineVP())))),
    "abm": lambda d: [last(abm, D, normal(d, 5, 2), ts, order=order, cond=labels(d)).x for order in (1, 3, 4)
                      for D, ts in ((exact(), GRID), (points(d), GRID.to(d)))],
    "few_steps": lambda d: [last(few_steps, D, normal(d, 5, 2), n, cond=labels(d)).x
                            for D, n in ((exact(), 5), (points(d), 2))],
    "dpm_solver_pp_sde": lambda d: [last(dpm_solver_pp_sde, exact(), normal(d, 5, 2), GRID.to(where), generator=gen(d)).x
                                    for where in ("cpu", d)],
    "optimise_grid": lambda d: optimise_grid(exact(), normal(d, 5, 2), 3, dpm_solver_pp, std=1.07, iterations=2, fine=10).to(d),
    "rk45": lambda d: [last(rk45, D, normal(d, 5, 2), GRID.to(where), rtol=1e-2, atol=1e-2).x for where in ("cpu", d)
                       for D in (exact(), points(d))],
    "encode": lambda d: encode(exact(), normal(d, 5, 2), GRID, rtol=1e-2, atol=1e-2),
    "likelihood": likelihood,
    "dequantise": lambda d: dequantise(normal(d, 5, 4).clamp(-1, 1), gen(d)),
    "picard": sweeps(picard), "picard, known slopes": sweeps(picard, std=1.07),
    "picard, secants": sweeps(picard, std=1.07, secant=True, window=3),
    "parareal": sweeps(parareal), "parareal, blocks": sweeps(parareal, blocks=3),
    "parareal, coarse": lambda d: converged(parareal(exact(), normal(d, 5, 2), GRID, noisy_ddim, ancestral, generator=gen(d))
                                            ).trajectory,
    "speculative": lambda d: [speculative(D, normal(d, 5, 2), GRID.to(where), ancestral, 3, gen(d), labels(d)).x
                              for where in ("cpu", d) for D in (exact(), points(d))],
    **{name: bridge(name) for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")},
    "two_step_target": lambda d: [target(points(d), normal(d, 5, 2), 0.9, 0.8, 0.6, labels(d))
                                  for target in (two_step_target, midpoint_target)],
    "noised": lambda d: noised(CosineVP(), normal(d, 5, 2), torch.full((5,), 0.5).to(d), gen(d)),
    "divergence": lambda d: divergence(lambda x: score(exact(), x, 0.3), normal(d, 5, 2)),
    "langevin": lambda d: list(langevin(lambda x: score(exact(), x, 0.3), normal(d, 5, 2), 0.01, 2, gen(d))),
    "annealed_langevin": lambda d: [list(annealed_langevin(exact(schedules.VE()), normal(d, 5, 2), GRID.to(where), 2,
                                                           generator=gen(d))) for where in ("cpu", d)],
    "mixture": lambda d: (targets.two_islands().log_prob(normal(d, 5, 2)),
                          RING.log_prob(normal(d, 5, 2)), RING.marginal(CosineVP(), 0.5).log_prob(normal(d, 5, 2))),
    "fold": lambda d: metrics.fold(normal(d, 9, 2)),
    "features": lambda d: [metrics.features(awake(d, Classifier).features, normal(d, 9, 1, 28, 28), batch=4),
                           metrics.features(awake(d, ColourFeatures).features, normal(d, 2, 3, 64, 64))],
    "relative_l2": lambda d: metrics.relative_l2(normal(d, 9, 2), normal(d, 9, 2, seed=1)),
    "u-net": lambda d: [pictures(d)(normal(d, 5, 1, 16, 16), 0.5, cond) for cond in (None, labels(d))],
    "upscaler": lambda d: awake(d, lambda: Upscaler(widths=(8, 16), depth=1, patch=2))(
        normal(d, 2, 3, 16, 16), normal(d, 2), normal(d, 2, 3, 4, 4)),
    "transformer": lambda d: [transformer(d, shape)(normal(d, 2, 1, 8, 8), normal(d, 2), cond) for shape in ((), (1, 8, 8))
                              for cond in (None, torch.arange(24).reshape(2, 12).remainder(9).sub(1).to(d))],
    "latents": latents,
    "ppca": lambda d: [x.abs() for x in ppca(torch.diag(torch.arange(1.0, 6.0)).to(d), 2, 0.1)],
    "sentences": sentences,
    "accuracy": lambda d: recipes.accuracy(awake(d, Classifier), normal("cpu", 9, 1, 28, 28), torch.arange(9)),
    "reconstruction": lambda d: recipes.reconstruction(autoencoder(d), normal("cpu", 9, 3, 8, 8)),
    "sample_sentences": lambda d: len(recipes.sentences.sample_sentences(
        Preconditioned(awake(d, lambda: DiT(32, 4, 1, 16, 1, 2)), CosineVP(), V()), of_sentences(d), 2)),
    "path_error": lambda d: recipes.path_error(points(d, kind=Student), 5),
    "scatter": show(lambda d: scatter(normal(d, 5, 2))), "paths": show(lambda d: paths(normal(d, 3, 5, 2))),
    "image_grid": show(lambda d: image_grid(normal(d, 5, 1, 8, 8))),
    "image_rows": show(lambda d: image_rows([normal(d, 5, 1, 8, 8)], ["noise"])),
}

# ---------------------------------------------------------------------------------------------- losses
TS = torch.linspace(CosineVP().t_max, 0, 5, dtype=torch.float64)
ROWS, LABELS = 0.5 * normal("cpu", 20, 2, seed=9), torch.arange(20) % 8
IMAGES, GREY = normal("cpu", 20, 3, 16, 16, seed=9).clamp(-1, 1), normal("cpu", 20, 1, 28, 28, seed=9).clamp(-1, 1)
CAPTIONS = torch.arange(20 * 3 * 12).reshape(20, 3, 12) % 9 - 1
NUMBERS = (torch.arange(20 * 16).reshape(20, 16) % 60 - 10).clamp(min=-1)


def of_score(loss, noise: bool = True):
    """A loss of a score function as one of a denoiser."""
    return lambda model, x, g: loss(lambda y: score(model, y, 0.3), x, *(
        [torch.randn(x.shape, generator=g, device=x.device)] if noise else []))


def captioned(d):
    return Preconditioned(transformer(d, (1, 8, 8)), CosineVP(), V())


def trainee(d):
    return Trainee(points(d, kind=Student))


# name: the loss for a device, the model there, and the data, which `train` moves
LOSSES = {
    "diffusion": (lambda d: recipes.diffusion_loss, points, [ROWS, LABELS]),
    "implicit": (lambda d: of_score(implicit_loss, noise=False), points, [ROWS]),
    "sliced": (lambda d: of_score(sliced_loss), points, [ROWS]),
    "denoising score": (lambda d: of_score(lambda s, x, z: denoising_score_loss(s, x, 0.3, z)), points, [ROWS]),
    "guidance": (lambda d: guidance_loss(points(d), 2.0), lambda d: points(d, 1), [ROWS, LABELS]),
    "halving": (lambda d: halving_loss(points(d), TS), lambda d: points(d, kind=Student), [ROWS]),
    "halving, told": (lambda d: halving_loss(points(d, 1), TS, 2.0, midpoint_target), lambda d: points(d, 1, Student),
                      [ROWS, LABELS]),
    "consistency training": (lambda d: training_loss(closing()), lambda d: Trainee(points(d, kind=Student), 0.9), [ROWS]),
    "distillation": (lambda d: distillation_loss(exact(), neighbours(TS.to(d))), trainee, [ROWS]),
    "distillation, network": (lambda d: distillation_loss(points(d), neighbours(TS)), trainee, [ROWS, LABELS]),
    "path": (lambda d: path_loss(points(d), TS), lambda d: points(d, kind=Student), [ROWS, LABELS]),
    "path, told": (lambda d: path_loss(points(d, 1), TS, 0.5, midpoint), lambda d: points(d, 1, Student), [ROWS, LABELS]),
    "continuous": (lambda d: continuous_loss(), trainee, [ROWS, LABELS]),
    "continuous, teacher": (lambda d: continuous_loss(points(d)), trainee, [ROWS]),
    "mean flow": (lambda d: mean_flow_loss(), lambda d: points(d, 1, FlowMap, FlowVelocity(), Flow()), [ROWS, LABELS]),
    "kl": (lambda d: kl_loss(0.1), autoencoder, [IMAGES]),
    "kl, turned": (lambda d: recipes.turned(kl_loss(0.1)), autoencoder, [IMAGES]),
    "kl, linear": (lambda d: kl_loss(1.0), lambda d: awake(d, lambda: LinearAutoencoder(2, 1, 0.1)), [ROWS]),
    "vq": (lambda d: vq_loss(), codes, [IMAGES]),
    "sentences": (lambda d: text.sentence_loss(), of_sentences, [NUMBERS]),
    "cross-entropy": (lambda d: recipes.fashion.shifted_cross_entropy, lambda d: awake(d, Classifier), [GREY, LABELS]),
    "captioned": (lambda d: recipes.captioned_loss, captioned, [GREY[..., :8, :8], CAPTIONS]),
    "sketched": (lambda d: recipes.emoji.sketched_loss, captioned, [GREY[..., :8, :8], CAPTIONS]),
    "upscaling": (lambda d: recipes.upscaling_loss, lambda d: Preconditioned(awake(d, lambda: Upscaler(
        widths=(8, 16), depth=1, patch=2)), CosineVP(), X0()).to(d), [IMAGES]),
}


def loss_case(make, build, rows):
    """A loss and its gradient by every weight."""
    def case(d):
        model = build(d)
        loss = make(d)(model, *(r[:8].to(d) for r in rows), gen(d))
        weights = [p for p in model.parameters() if p.requires_grad]
        return loss, [g for g in torch.autograd.grad(loss, weights, allow_unused=True) if g is not None]

    return case


CASES |= {f"{name} loss": loss_case(*parts) for name, parts in LOSSES.items()}
