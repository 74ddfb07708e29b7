"""Consistency functions and flow maps against the closed form of a Gaussian: boundary, gradients, bias, identities."""

import copy
import math

import pytest
import torch
from torch import nn

from course_lib import training
from course_lib.consistency import (
    FlowMap,
    Trainee,
    along_the_flow,
    closing,
    consistency_step,
    continuous_loss,
    distillation_loss,
    flow_map_step,
    mean_flow_loss,
    neighbours,
    path_loss,
    pseudo_huber,
    ratio,
    training_loss,
)
from course_lib.denoiser import EDM, X0, Eps, FlowVelocity, Student, V, per_row, velocity
from course_lib.fast_samplers import ddim
from course_lib.networks import MLP
from course_lib.sampling import final
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, karras, uniform
from course_lib.targets import GaussianMixture, ring

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
MEAN, STD = 0.8, 0.6
GAUSSIAN = GaussianMixture([[MEAN, MEAN]], STD)


def spread(schedule, t):
    """Standard deviation of x_t for data N(MEAN, STD^2)."""
    return ((schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2).sqrt()


def exact(schedule, x, t, s=0.0):
    """Where the Gaussian's flow takes x at t by the time s; s = 0 is its consistency function."""
    s = torch.as_tensor(s).to(x)
    back = (x - per_row(schedule.alpha(t), x) * MEAN) * per_row(spread(schedule, s) / spread(schedule, t), x)
    return per_row(schedule.alpha(s), x) * MEAN + back


def exact_step(D, x, t, s, z=None, cond=None):
    return exact(D.schedule, x, t, s)


class Shifted(nn.Module):
    """The Gaussian's consistency function plus a learnable number times sigma(t): at 0 it is perfect."""

    is_posterior_mean = False

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.off = schedule, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, cond=None):
        return exact(self.schedule, x, t) + self.off * per_row(self.schedule.sigma(t), x)

    def coefficients(self, x, t):
        return 0 * x, -per_row(self.schedule.sigma(t), x), 0 * x


def slope_at_perfection(loss, schedule, rows=4000):
    trainee, generator = Trainee(Shifted(schedule)), torch.Generator().manual_seed(1)
    value = loss(trainee, GAUSSIAN.sample(rows, generator), generator)
    return torch.autograd.grad(value, [trainee.f.off])[0].item()


# ---------------------------------------------------------------------------------------------- what it is
@every_schedule
@pytest.mark.parametrize("parameterisation", [Eps(), V(), FlowVelocity(), EDM()], ids=lambda p: type(p).__name__)
def test_the_boundary_holds_by_parameterisation(schedule, parameterisation, generator):
    network = MLP(width=8, depth=1).double()
    nn.init.normal_(network.out.weight)
    f, x = Student(network, schedule, parameterisation), torch.randn(5, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(f(x, torch.zeros(5, dtype=torch.float64)), x)
    assert (Student(network, schedule, X0())(x, 0.0) - x).abs().max() > 0.1, "x0-prediction has no such boundary"


@every_schedule
def test_the_closed_form_is_constant_along_the_flow(schedule, generator):
    D = GAUSSIAN.denoiser(schedule)
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.8, 7, dtype=torch.float64)
    value, rate = along_the_flow(lambda x, t: exact(schedule, x, t), x, t, velocity(D, x, t))
    torch.testing.assert_close(value, exact(schedule, x, t))
    assert rate.abs().max() < 1e-10
    _, frozen = along_the_flow(lambda x, t: exact(schedule, x, t), x, t, torch.zeros_like(x))
    assert frozen.abs().max() > 0.1, "without the tangent of x it is not"


# ---------------------------------------------------------------------------------------------- what is learnt
@every_schedule
def test_perfection_has_no_gradient_with_the_exact_flow_and_in_continuous_time(schedule):
    D, ts = GAUSSIAN.denoiser(schedule), uniform(6, schedule)
    assert abs(slope_at_perfection(distillation_loss(D, neighbours(ts), exact_step), schedule)) < 1e-6
    assert abs(slope_at_perfection(continuous_loss(D), schedule)) < 1e-6
    assert abs(slope_at_perfection(distillation_loss(D, neighbours(ts), ddim), schedule)) > 1e-4, "a DDIM step has a bias"


@every_schedule
def test_whole_paths_teach_where_they_end(schedule, generator):
    D, x0 = GAUSSIAN.denoiser(schedule), GAUSSIAN.sample(6, generator)
    ts = torch.cat([uniform(6, schedule)[:-1], torch.zeros(1, dtype=torch.float64)])
    assert path_loss(D, ts, step=exact_step)(Shifted(schedule), x0, generator).item() < 1e-9, "every state has the same end"
    off = Shifted(schedule)
    with torch.no_grad():
        off.off += 0.3
    expected = sum(((0.3 * schedule.sigma(t)) ** 2 + 1e-6).sqrt().item() - 1e-3 for t in ts[:-1]) / 6
    assert path_loss(D, ts, step=exact_step)(off, x0, generator).item() == pytest.approx(expected, abs=1e-9)


def test_paths_tell_labels_and_guidance_weights_to_both(generator):
    heard = {"teacher": [], "f": []}

    class Ear(Student):
        def predict(self, x, t, cond=None, numbers=None):
            heard[self.name].append((cond, numbers))
            return torch.zeros_like(x)

    teacher, f = (Ear(MLP(width=8), CosineVP(), V()) for _ in range(2))
    teacher.name, f.name = "teacher", "f"
    labels = torch.tensor([3, 1, 2])
    path_loss(teacher, torch.linspace(0.9, 0, 5), largest=2.0)(f, torch.zeros(3, 2), labels, generator)
    (cond, numbers), = heard["f"]
    assert torch.equal(cond, labels.repeat(4)) and numbers.shape == (12, 1) and numbers.unique().numel() == 3
    assert len(heard["teacher"]) == 4
    for k, (c, w) in enumerate(heard["teacher"]):
        assert torch.equal(c, labels) and torch.equal(w, numbers[3 * k:3 * k + 3]), "one weight for a whole path"


def test_the_bias_of_a_ddim_step_falls_as_the_square_of_the_gap():
    schedule, t = CosineVP(), torch.tensor([0.5], dtype=torch.float64)
    D, x = GAUSSIAN.denoiser(schedule), torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    bias = [(exact(schedule, ddim(D, x, t, t - gap), t - gap) - exact(schedule, x, t)).norm()
            for gap in (0.08, 0.04, 0.02, 0.01)]
    orders = torch.stack(bias).log2().diff().neg()
    assert (orders - 2).abs().max() < 0.1, orders


def test_consistency_training_has_the_same_bias_on_the_mean(generator):
    """One image with one noise: given x_t its x_r is random, with the DDIM step as its mean (f is linear here)."""
    schedule, n = CosineVP(), 400_000
    t, r, D = torch.tensor(0.5), torch.tensor(0.3), GAUSSIAN.denoiser(CosineVP())
    x0, noise = GAUSSIAN.sample(n, generator), torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x_t, x_r = (schedule.alpha(s) * x0 + schedule.sigma(s) * noise for s in (t, r))
    design = torch.cat([torch.ones(n, 1, dtype=torch.float64), x_t[:, :1]], 1)         # least squares is E[. | x_t]
    fitted = torch.linalg.lstsq(design, exact(schedule, x_r, r)[:, :1]).solution[:, 0]
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    ends = exact(schedule, ddim(D, x, t, r), r)[:, 0]
    torch.testing.assert_close(fitted, torch.stack([ends[0], ends[1] - ends[0]]), rtol=0, atol=3e-3)


def test_no_gradient_reaches_the_copy_that_teaches(generator):
    trainee = Trainee(Student(MLP(width=8, depth=1), CosineVP(), V()), decay=0.9)
    training_loss(neighbours(uniform(4, CosineVP())))(trainee, torch.randn(16, 2), generator).backward()
    assert all(p.grad is None for p in trainee.slow.parameters())
    assert trainee.f.network.out.weight.grad.abs().max() > 0


def test_dropout_is_the_same_for_the_pair(generator):
    class Mask(nn.Module):
        schedule = CosineVP()

        def __init__(self):
            super().__init__()
            self.ones, self.drop = nn.Parameter(torch.ones(1)), nn.Dropout(0.5)

        def forward(self, x, t, cond=None):
            return self.drop(self.ones.expand_as(x))

    loss = training_loss(neighbours(uniform(4, CosineVP())))(Trainee(Mask()).train(), torch.randn(64, 2), generator)
    assert loss.item() == 0


def test_labels_reach_both(generator):
    heard = []

    class Listens(Shifted):
        def forward(self, x, t, cond=None):
            heard.append(cond)
            return super().forward(x, t)

    loss = training_loss(neighbours(uniform(4, CosineVP())))
    loss(Trainee(Listens(CosineVP())), torch.zeros(5, 2), torch.arange(5), generator)
    assert len(heard) == 2 and all(torch.equal(c, torch.arange(5)) for c in heard)


def test_pseudo_huber_is_a_square_near_0_and_a_modulus_far_off():
    d = torch.tensor([[1e-3, -1e-3], [30.0, -40.0]], dtype=torch.float64)
    near, far = pseudo_huber(d, c=0.1)
    assert near.item() == pytest.approx(1e-6 / 0.2, rel=1e-3)
    assert far.item() == pytest.approx(math.sqrt(1250) - 0.1, rel=1e-4)


# ---------------------------------------------------------------------------------------------- times and the trainee
def test_neighbours_are_adjacent_and_all_are_drawn(generator):
    ts = karras(5, LinearVP())
    t, r = neighbours(ts)(200, LinearVP(), generator, 0)
    found = {(a, b) for a, b in zip(t.tolist(), r.tolist(), strict=True)}
    assert found == set(zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True))


@every_schedule
def test_the_gap_closes_with_age(schedule, generator):
    gaps = []
    for age in (0, 10, 20, 30, 500):
        t, r = closing(q=4.0, every=10, stages=3)(2000, schedule, generator, age)
        assert bool((r < t).all()) and bool((r >= 0).all()) and t.max() <= schedule.t_max + 1e-6
        high, low = ratio(schedule, t.double()), ratio(schedule, r.double())
        stage = min(age // 10, 3)
        expected = (1 - (1 + 8 * (-high).sigmoid()) / 4.0 ** (1 + stage)).clamp(min=0)
        torch.testing.assert_close(low / high, expected, rtol=0, atol=2e-3)
        gaps.append((1 - low / high).mean().item())
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] == pytest.approx(gaps[4], rel=0.05)


def test_the_copy_follows_and_the_age_counts():
    f = Student(MLP(width=8, depth=1), CosineVP(), V())
    still, slow = Trainee(f, 0.0), Trainee(copy.deepcopy(f), 0.75)
    for trainee in (still, slow):
        trainee.f.network.out.bias.data += 1.0
        trainee.grow()
    assert torch.equal(still.slow.network.out.bias, still.f.network.out.bias)
    torch.testing.assert_close(slow.slow.network.out.bias, torch.full((2,), 0.25))
    assert still.age == slow.age == 1


def test_a_killed_run_ends_with_the_same_function(tmp_path):
    def run(steps_before_the_kill=None, path=None):
        torch.manual_seed(0)
        trainee = Trainee(Student(MLP(width=8, depth=1), CosineVP(), V()), 0.9)
        plain, calls = training_loss(closing(every=3)), 0

        def loss(*rest):
            nonlocal calls
            calls += 1
            if calls == steps_before_the_kill:
                raise KeyboardInterrupt
            return plain(*rest)

        return training.train(loss, trainee, [torch.ones(20, 2)], steps=12, batch=8, save_every=4, checkpoint=path,
                              progress=False, device="cpu").model

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(7, tmp_path / "state.pt")
    resumed = run(path=tmp_path / "state.pt")
    assert whole.age == resumed.age == 12
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_distillation_learns_the_ends_of_the_ring():
    """One step from pure noise ends far nearer to the exact end than the denoiser's blur does."""
    schedule, target = CosineVP(), ring()
    D, generator = target.denoiser(schedule), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pairs = neighbours(torch.linspace(schedule.t_max, 0, 9, dtype=torch.float64))
    trainee, x0 = Trainee(Student(MLP(width=64), schedule, V()), 0.9), target.sample(4000, generator).float()
    f = training.train(distillation_loss(D, pairs, ddim), trainee, [x0], steps=500, batch=256, lr=3e-3, ema=0.99,
                       progress=False).model.f
    x = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    ends = final(D, x, torch.cat([uniform(200, schedule), torch.zeros(1, dtype=torch.float64)]), ddim).x
    blur, found = ((g(x.float(), schedule.t_max) - ends).norm(dim=1).mean() for g in (D, f))
    assert found < blur / 3, (blur, found)


# ---------------------------------------------------------------------------------------------- sampling
@every_schedule
@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_steps_keeps_the_gaussian_and_ends_clean(schedule, n):
    """f is affine, so mean and variance are followed exactly: of the start, and of each draw of noise."""
    f, start = Shifted(schedule), schedule.t_max
    ts = torch.cat([torch.linspace(start, 0.2, n + 1, dtype=torch.float64)[:-1], torch.zeros(1, dtype=torch.float64)])
    centre = schedule.alpha(start) * MEAN
    x = (centre + spread(schedule, start) * torch.tensor([[0.0], [1.0]], dtype=torch.float64)).expand(2, 2)
    none = torch.zeros(n, 2, 2, dtype=torch.float64)
    base = final(f, x, ts, consistency_step, noise=none).x
    variance = (base[1] - base[0]) ** 2
    for i in range(n):
        one = none.clone()
        one[i] = 1.0
        variance = variance + (final(f, x, ts, consistency_step, noise=one).x[0] - base[0]) ** 2
    torch.testing.assert_close(base[0], torch.full((2,), MEAN, dtype=torch.float64))
    torch.testing.assert_close(variance, torch.full((2,), STD**2, dtype=torch.float64))


def test_a_consistency_step_asks_for_its_noise():
    with pytest.raises(ValueError, match="consistency_step"):
        consistency_step(Shifted(CosineVP()), torch.zeros(1, 2, dtype=torch.float64), 0.5, 0.2)


# ---------------------------------------------------------------------------------------------- flow maps
def average_velocity(z, t, r):
    """u = z (1 - s(r)/s(t))/(t - r) for N(0, STD^2), s(t)^2 = (1-t)^2 STD^2 + t^2."""
    def s(t):
        return ((1 - t) ** 2 * STD**2 + t**2).sqrt()

    return z * ((1 - s(r) / s(t)) / (t - r))[:, None]


def test_the_mean_flow_identity_needs_the_total_derivative(generator):
    centred, schedule = GaussianMixture([[0.0, 0.0]], STD), Flow()
    z = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    t, r = torch.linspace(0.3, 0.9, 50, dtype=torch.float64), torch.linspace(0.05, 0.5, 50, dtype=torch.float64)
    keep = t - r > 0.05
    z, t, r = z[keep], t[keep], r[keep]
    v = velocity(centred.denoiser(schedule), z, t)

    def residual(slope):
        u, rate = along_the_flow(lambda z, t: average_velocity(z, t, r), z, t, slope)
        return (u - v + (t - r)[:, None] * rate).abs().max()

    assert residual(v) < 1e-10
    assert residual(torch.zeros_like(v)) > 0.1


class OnePoint(FlowMap):
    """The flow map of a single point c: u = (z - c)/t for every r; off by one learnable number times t - r."""

    def __init__(self, c):
        nn.Module.__init__(self)
        self.c, self.schedule, self.parameterisation = c, Flow(), FlowVelocity()
        self.off = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def predict(self, x, t, cond=None, numbers=None):
        t = per_row(t, x)
        return (x - self.c) / t + self.off * (t - numbers)


def test_a_perfect_flow_map_has_no_mean_flow_loss_and_steps_exactly(generator):
    c = torch.tensor([0.5, -1.0], dtype=torch.float64)
    model, x0 = OnePoint(c), c.expand(200, 2)
    loss = mean_flow_loss()(model, x0, generator)
    assert loss < 1e-12 and abs(torch.autograd.grad(loss, [model.off])[0]) < 1e-8
    model.off.data += 0.3
    assert mean_flow_loss()(model, x0, generator) > 1e-4
    model.off.data.zero_()
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    for ts in ([0.9, 0.0], [0.9, 0.5, 0.2, 0.0]):
        end = final(model, x, torch.tensor(ts, dtype=torch.float64), flow_map_step).x
        torch.testing.assert_close(end, c.expand(6, 2))


def test_flow_map_steps_compose(generator):
    """One step from t to r is two, by way of any time between: the semigroup."""
    model = OnePoint(torch.tensor([0.5, -1.0], dtype=torch.float64))
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    two = flow_map_step(model, flow_map_step(model, x, 0.8, 0.5), 0.5, 0.2)
    torch.testing.assert_close(flow_map_step(model, x, 0.8, 0.2), two)


def test_mean_flow_learns_a_map_of_one_step():
    schedule, target = Flow(), GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.2)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = FlowMap(MLP(width=64, depth=2, numbers=1, fastest=8.0), schedule, FlowVelocity())
    x0 = target.sample(4000, generator).float()
    trained = training.train(mean_flow_loss(), model, [x0], steps=600, batch=256, lr=3e-3, ema=0.99, progress=False).model
    x = torch.randn(1000, 2, generator=generator)
    end = final(trained, x, torch.tensor([1.0, 0.0]), flow_map_step).x
    near = ((end[:, None] - target.means.float()).norm(dim=2).min(1).values < 3 * 0.2).float().mean()
    assert near > 0.6, near                                      # one step of flow matching puts hardly any there


# ---------------------------------------------------------------------------------------------- what is refused
def trainee():
    return Trainee(Student(MLP(2, 8, 1), CosineVP(), EDM()))


DOWN = torch.tensor([0.9, 0.5, 0.0])
LOSSES = {
    "training": lambda x0, g: training_loss(closing())(trainee(), x0, g),
    "distillation": lambda x0, g: distillation_loss(GAUSSIAN.denoiser(CosineVP()), neighbours(DOWN))(trainee(), x0, g),
    "path": lambda x0, g: path_loss(GAUSSIAN.denoiser(CosineVP()), DOWN)(trainee().f, x0, g),
    "continuous": lambda x0, g: continuous_loss()(trainee(), x0, g),
    "mean flow": lambda x0, g: mean_flow_loss()(FlowMap(MLP(2, 8, 1, numbers=1), Flow(), FlowVelocity()), x0, g),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_has_no_loss(name, generator):
    with pytest.raises(ValueError, match="x0: expected at least one row, got none"):
        LOSSES[name](torch.zeros(0, 2), generator)


@pytest.mark.parametrize("name", ["training", "distillation", "continuous"])
def test_without_a_generator_the_global_one_draws(name):
    assert LOSSES[name](torch.zeros(3, 2), None).isfinite()


@pytest.mark.parametrize(("build", "message"), [
    (lambda: neighbours(DOWN[:1]), "ts: expected a float tensor of at least two times"),
    (lambda: neighbours(DOWN.flip(0)), "ts: times must fall"),
    (lambda: path_loss(GAUSSIAN.denoiser(CosineVP()), DOWN.flip(0)), "ts: times must fall"),
    (lambda: closing(q=1.0), "q - 1: expected a positive number, got 0.0"),
    (lambda: closing(every=0), "every: expected a whole number, at least 1, got 0"),
    (lambda: pseudo_huber(torch.zeros(3, 2), 0.0), "c: expected a positive number, got 0.0"),
    (lambda: Trainee(trainee().f, 2.0), "decay: expected a finite number from 0 to 1, got 2.0"),
    (lambda: mean_flow_loss(moving=2.0), "moving: expected a finite number from 0 to 1, got 2.0"),
])
def test_what_teaches_no_consistency_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_distance_of_half_precision_does_not_overflow():
    assert pseudo_huber(torch.full((1, 4), 300.0, dtype=torch.float16), 1.0).item() == pytest.approx(299, rel=1e-3)
