"""Progressive distillation: its algebra is exact, a perfect student has nothing to learn, halving keeps the teacher's end."""

from functools import partial

import pytest
import torch
from torch import nn

from course_lib import training
from course_lib.denoiser import Preconditioned, Student, V, guided, levels, noised, score, told
from course_lib.fast_samplers import ddim, midpoint
from course_lib.networks import MLP
from course_lib.progressive import (
    guidance_loss,
    halving_loss,
    midpoint_target,
    overshoot,
    two_step_target,
    x0_between,
)
from course_lib.sampling import final, prior
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, uniform
from course_lib.targets import GaussianMixture, ring

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
ROWS = [(torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.6, 0.4, 0.15]), torch.tensor([0.4, 0.3, 0.0]))]


def doubles(*shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- the target
@every_schedule
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4)])
def test_a_ddim_step_with_the_x0_between_lands_where_it_should(schedule, shape, generator):
    x, z = doubles(*shape, generator=generator), doubles(*shape, generator=generator)
    t, _, s = (c.double() for c in ROWS[0])

    class Says:
        def __init__(self):
            self.schedule = schedule

        def __call__(self, x_t, t, cond=None):
            return x0_between(schedule, x, t, z, s)

    torch.testing.assert_close(ddim(Says(), x, t, s), z, rtol=0, atol=1e-12)
    last = x0_between(schedule, x[2:], t[2:], z[2:], s[2:])
    torch.testing.assert_close(last, z[2:], rtol=0, atol=1e-12)                     # s = 0: the data itself


@every_schedule
def test_one_step_with_the_target_is_the_teachers_two(schedule, generator):
    D, x = MIXTURE.denoiser(schedule), doubles(3, 2, generator=generator)
    t, m, s = (c.double() for c in ROWS[0])
    cond = torch.tensor([0, -1, 2])
    two = ddim(D, ddim(D, x, t, m, cond=cond), m, s, cond=cond)
    x0 = two_step_target(D, x, t, m, s, cond)
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    one = alpha_s * x0 + sigma_s * (x - alpha_t * x0) / sigma_t
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@every_schedule
def test_the_second_order_target_is_what_the_teacher_sees_halfway(schedule, generator):
    D, x, t, s = MIXTURE.denoiser(schedule), doubles(5, 2, generator=generator), 0.6, 0.3
    landing = x0_between(schedule, x, t, midpoint(D, x, t, s), s)
    torch.testing.assert_close(midpoint_target(D, x, t, 0.45, s), landing, rtol=0, atol=1e-12)


@every_schedule
def test_the_midpoint_step_has_order_2(schedule):
    D = GaussianMixture([[0.8]], 0.6).denoiser(schedule)
    start, end = 0.7, 0.3
    x = torch.tensor([[1.3]], dtype=torch.float64)

    def error(n):
        found = final(D, x, torch.linspace(start, end, n + 1, dtype=torch.float64), midpoint).x
        a, s = schedule.alpha(torch.tensor([start, end]).double()), schedule.sigma(torch.tensor([start, end]).double())
        std = ((a * 0.6) ** 2 + s**2).sqrt()
        return (found - (a[1] * 0.8 + (x - a[0] * 0.8) * std[1] / std[0])).abs().item()

    orders = torch.tensor([error(n) for n in (20, 40, 80, 160)]).log2().diff().neg()
    assert (orders - 2).abs().max() < 0.15, orders


# ---------------------------------------------------------------------------------------------- the losses
class Perfect(nn.Module):
    """Says what a function says, off by one learnable number; predict and target as if the parameterisation were X0."""

    def __init__(self, function, schedule):
        super().__init__()
        self.function, self.schedule, self.off = function, schedule, nn.Parameter(torch.zeros(()))

    def forward(self, x, t, cond=None, numbers=None):
        return self.function(x, t, cond, numbers) + self.off

    def predict(self, x, t, cond=None, numbers=None):
        return self(x, t, cond, numbers)

    def target(self, x0, x, t):
        return x0


def gradient(loss, student):
    (g,) = torch.autograd.grad(loss, [student.off])
    return g.item()


def test_a_perfect_student_has_nothing_left_to_learn_and_the_weight_is_that_of_the_paper(generator):
    schedule = CosineVP()
    teacher, ts = ring().denoiser(schedule), torch.tensor([0.6, 0.4, 0.3], dtype=torch.float32)
    student = Perfect(lambda x, t, cond, _: two_step_target(teacher, x, t, ts[1], ts[2], cond), schedule)
    x0 = ring().sample(64, generator).float()
    loss = halving_loss(teacher, ts)(student, x0, generator)
    assert loss < 1e-10 and abs(gradient(loss, student)) < 1e-5
    with torch.no_grad():
        student.off += 0.5
    for t, weight in ((0.6, 1.0), (0.3, schedule.log_snr(0.3).exp().item())):          # snr < 1, snr > 1
        ts = torch.tensor([t, t - 0.1, t - 0.2])
        assert halving_loss(teacher, ts)(student, x0, generator).item() == pytest.approx(0.25 * weight, rel=1e-4)


def test_a_student_that_is_told_every_composite_has_nothing_left_to_learn(generator):
    schedule, target = CosineVP(), ring()
    teacher = target.denoiser(schedule)
    student = Perfect(lambda x, t, cond, w: guided(teacher, w[:, 0])(x, t, cond), schedule)
    x0, labels = target.sample(64, generator).float(), torch.arange(64) % 8
    loss = guidance_loss(teacher, 3.0)(student, x0, labels, generator)
    assert loss < 1e-10 and abs(gradient(loss, student)) < 1e-5


def test_halving_hands_the_label_and_the_weight_to_both(generator):
    heard = []

    class Listens(Perfect):
        def forward(self, x, t, cond=None, numbers=None):
            heard.append((cond, numbers))
            return super().forward(x, t, cond, numbers)

        is_posterior_mean = True

    teacher, student = (Listens(lambda x, *_: 0 * x, CosineVP()) for _ in range(2))
    halving_loss(teacher, uniform(4, CosineVP()), largest=2.0)(student, torch.zeros(9, 2), torch.arange(9), generator)
    assert len(heard) == 3                                                             # two of the teacher, one of the student
    for cond, numbers in heard:
        assert torch.equal(cond, torch.arange(9)) and torch.equal(numbers, heard[0][1])
        assert numbers.shape == (9, 1) and 0 <= numbers.min() < numbers.max() <= 2


def test_noised_is_the_forward_marginal(generator):
    schedule, t = LinearVP(), torch.full((40_000,), 0.3)
    x, noise = noised(schedule, torch.full((40_000, 1), 2.0), t, generator)
    assert abs(x.mean() - 2 * schedule.alpha(0.3)) < 0.01 and abs(x.std() - schedule.sigma(0.3)) < 0.01
    torch.testing.assert_close(x, 2 * schedule.alpha(0.3).float() + schedule.sigma(0.3).float() * noise)


@pytest.mark.parametrize("n", [1, 3])
def test_a_grid_that_cannot_be_halved_is_refused(n):
    with pytest.raises(ValueError, match="even number of steps"):
        halving_loss(ring().denoiser(CosineVP()), uniform(n, CosineVP()))


# ---------------------------------------------------------------------------------------------- training
def small(seed=0, **told_more):
    torch.manual_seed(seed)
    return Preconditioned(MLP(width=16, depth=1, **told_more), CosineVP(), V())


def test_students_start_as_their_teacher_and_have_no_score(generator):
    teacher = small(classes=3)
    for p in teacher.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    x, t, cond = torch.randn(5, 2, generator=generator), torch.full((5,), 0.4), torch.tensor([0, 1, 2, -1, 0])
    student = Student.of(teacher)
    assert torch.equal(student(x, t, cond), teacher(x, t, cond))
    more = Student.of(teacher, MLP(width=16, depth=1, classes=3, numbers=1))
    torch.testing.assert_close(told(more, 1.5)(x, t, cond), teacher(x, t, cond))
    with pytest.raises(ValueError, match="no score"):
        score(student, x, t)
    assert all(p.requires_grad for p in student.parameters())


def test_distilled_guidance_follows_the_teacher_at_every_weight():
    """Untrained, the student ignores the weight; trained, it must err far less than by ignoring it."""
    target, schedule = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5), CosineVP()
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (4000,), generator=generator)
    x0 = target.sample(4000, generator, labels).float()

    def denoising(model, x0, y, generator):
        t = 0.02 + 0.96 * torch.rand(len(x0), generator=generator)
        y = torch.where(torch.rand(len(x0), generator=generator) < 0.2, -1, y)
        x, _ = noised(schedule, x0, t, generator)
        return (model.predict(x, t, y) - model.target(x0, x, t)).square().mean()

    torch.manual_seed(0)
    settings = {"batch": 256, "lr": 3e-3, "progress": False, "ema": 0.99}
    teacher = training.train(denoising, Preconditioned(MLP(width=48, depth=2, classes=2), schedule, V()), [x0, labels],
                             steps=300, **settings).model
    student = Student.of(teacher, MLP(width=48, depth=2, classes=2, numbers=1))
    student = training.train(guidance_loss(teacher, 2.0), student, [x0, labels], steps=300, **settings).model
    t = torch.linspace(0.1, 0.9, 500)
    (x, _), cond = noised(schedule, x0[:500], t, generator), labels[:500]
    for w in (0.5, 1.0, 1.5):
        truth = guided(teacher, w)(x, t, cond)
        assert (told(student, w)(x, t, cond) - truth).norm() < 0.4 * (teacher(x, t, cond) - truth).norm()


def test_halving_keeps_the_teachers_end_where_ddim_loses_it():
    schedule, target = CosineVP(), ring()
    exact, generator = target.denoiser(schedule), torch.Generator().manual_seed(0)
    x0, ts = target.sample(4000, generator).float(), torch.linspace(schedule.t_max, 0, 17)
    student = Preconditioned(MLP(width=64), schedule, V())

    def denoising(model, x0, generator):
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(len(x0), generator=generator)
        x, _ = noised(schedule, x0, t, generator)
        return (model.predict(x, t) - model.target(x0, x, t)).square().mean()

    settings = {"batch": 256, "lr": 2e-3, "progress": False, "ema": 0.99}
    teacher = training.train(denoising, student, [x0], steps=600, **settings).model
    students = {16: teacher}
    for n in (8, 4):
        loss = halving_loss(students[2 * n], ts[::8 // n])
        students[n] = training.train(loss, Student.of(students[2 * n]), [x0], steps=400, **settings).model
    student = students[4]
    x = prior(exact, (512, 2), generator)
    end = final(teacher, x, ts, ddim).x
    at_4 = {name: (final(D, x, ts[::4], ddim).x - end).norm(dim=1).mean() for name, D in
            (("student", student), ("teacher", teacher))}
    assert at_4["student"] < at_4["teacher"] / 5, at_4


# ---------------------------------------------------------------------------------------------- the stochastic sampler
@every_schedule
def test_overshoot_keeps_the_marginals_with_a_student_of_half_as_many_steps(schedule, generator):
    mean, std, t, s = 0.8, 0.6, 0.6, 0.5

    def spread(time):
        return ((schedule.alpha(time) * std) ** 2 + schedule.sigma(time) ** 2).sqrt()

    def jump(x, t, cond=None):                                                         # exact, from t to u = 0.4
        u = 2 * s - t
        z = schedule.alpha(u) * mean + (x - schedule.alpha(t) * mean) * spread(u) / spread(t)
        return x0_between(schedule, x, t, z, u)

    jump.schedule = schedule
    x = schedule.alpha(t) * mean + spread(t) * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    step = partial(overshoot, jump, x, t, s)
    centre, fresh = step(torch.zeros_like(x)), step(torch.ones_like(x)) - step(torch.zeros_like(x))
    assert centre[1].item() == pytest.approx((schedule.alpha(s) * mean).item(), abs=1e-9)
    variance = ((centre[2] - centre[0]) / 2) ** 2 + fresh[0] ** 2
    assert variance.item() == pytest.approx((spread(s) ** 2).item(), rel=1e-9)


def test_overshoot_ends_without_noise_and_asks_for_its_noise(generator):
    D, x = ring().denoiser(CosineVP()), doubles(4, 2, generator=generator)
    torch.testing.assert_close(overshoot(D, x, 0.25, 0.0, torch.ones_like(x)), D(x, 0.25), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="overshoot"):
        overshoot(D, x, 0.5, 0.25)


# ---------------------------------------------------------------------------------------------- what is refused
def network(numbers=0):
    return Preconditioned(MLP(2, 8, 1, classes=3, numbers=numbers), CosineVP(), V())


@pytest.mark.parametrize("loss", [
    lambda x0, labels, g: guidance_loss(network(), 2.0)(network(1), x0, labels, g),
    lambda x0, labels, g: halving_loss(network(), uniform(4, CosineVP()))(network(), x0, labels, g),
], ids=["guidance", "halving"])
def test_an_empty_batch_has_no_loss(loss, generator):
    with pytest.raises(ValueError, match="x0: expected at least one row, got none"):
        loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), generator)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: halving_loss(network(), uniform(4, CosineVP()).flip(0)), "ts: times must fall"),
    (lambda: halving_loss(network(), [0.9, 0.5, 0.1]), "ts: expected a float tensor"),
    (lambda: guidance_loss(network(), -1.0), "largest: expected a finite number from 0 to inf, got -1.0"),
    (lambda: guidance_loss(network(), float("nan")), "largest: .* got nan"),
    (lambda: x0_between(CosineVP(), torch.zeros(3, 2), 0.5, torch.zeros(1, 2), 0.3),
     r"z: expected shape \(3, 2\), got \(1, 2\)"),
])
def test_what_cannot_be_distilled_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("schedule", [CosineVP(), VE()], ids=["CosineVP", "VE"])
def test_the_noise_of_an_overshoot_in_half_precision_is_that_of_the_times(schedule):
    """It is the difference of two variances, which in a thousand steps are alike to the last digit of half precision."""
    D, x = MIXTURE.denoiser(schedule), torch.zeros(5, 2, dtype=torch.float64)
    grid = uniform(1000, schedule)
    for t, s in (grid[10:12], grid[300:302], grid[700:702]):
        found, truth = (overshoot(D, x.to(dtype), t, s, 1 + x) - overshoot(D, x.to(dtype), t, s, x)
                        for dtype in (torch.float16, torch.float64))
        torch.testing.assert_close(found.double(), truth, rtol=0.01, atol=1e-3)
