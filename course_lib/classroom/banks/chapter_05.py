# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 5, parallel sampling: its exercises with their known mistakes, and its predictions."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ...fast_samplers import ddim
from ...measure.costs import CostModel
from ...parallel import carry
from ...sampling import final
from ...sde_samplers import ancestral
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, SHAPES, Blob, between, normal


def falling(generator: torch.Generator, n: int) -> Tensor:
    """n + 1 decreasing times."""
    return between(generator, 0.1, 0.9, n + 1).sort(descending=True).values


def all_at_once(D, path: Tensor, ts: Tensor, step, z: Tensor | None = None) -> Tensor:
    """Every step of the grid from the states of path (n+1, B, ...), as one batch: (n, B, ...)."""
    B = path.shape[1]
    t, s = (v.repeat_interleave(B) for v in (ts[:-1], ts[1:]))
    return step(D, path[:-1].flatten(0, 1), t, s, None if z is None else z.flatten(0, 1)).reshape(path[:-1].shape)


# --- 5.1 -------------------------------------------------------------------------------------------------------------

def picard_sweep(path: Tensor, y: Tensor) -> Tensor:
    """The start plus the running sum of the increments, (n+1, B, ...), from path (n+1, B, ...) and y[j] = step_j(path[j])."""
    return torch.cat([path[:1], path[1:] + carry(torch.ones(y.shape[:2]).to(y), y - path[1:])])


def trajectories(generator: torch.Generator) -> Iterator[tuple]:
    for n, shape, schedule in zip((1, 5, 4, 6, 3), SHAPES, SCHEDULES):
        path = normal(generator, n + 1, *shape)
        yield path, all_at_once(Blob(schedule), path, falling(generator, n), ddim)


def _increments(path: Tensor, y: Tensor) -> Tensor:
    return y - path[:-1]


SWEEP = Exercise("5.1", "One sweep of Picard's iteration", picard_sweep, trajectories, [
    Mistake("the steps' results as they are", lambda path, y: torch.cat([path[:1], y]),
            "each state takes over what its neighbour's step says, so news travels one step a sweep; "
            "all increments above a state must be summed"),
    Mistake("no start", lambda path, y: torch.cat([path[:1], _increments(path, y).cumsum(0)]),
            "you sum the increments from zero; they start from X_0"),
    Mistake("the start left out", lambda path, y: path[0] + _increments(path, y).cumsum(0),
            "you return n states; the start X_0 belongs to the trajectory too, in front"),
    Mistake("increments added to the old states", lambda path, y: torch.cat([path[:1], path[1:] + _increments(path, y).cumsum(0)]),
            "the running sum replaces the old states; you added it to them"),
    Mistake("increments added to the states above", lambda path, y: torch.cat([path[:1], path[:-1] + _increments(path, y).cumsum(0)]),
            "each of your sums starts from the old state above it; they all start from X_0"),
    Mistake("one increment late", lambda path, y: torch.cat([path[:1], path[:1], path[:1] + _increments(path, y).cumsum(0)[:-1]]),
            "your sums come one state late: X_1 has the first increment in it already"),
    Mistake("summed from below", lambda path, y: torch.cat([path[:1], path[:1] + _increments(path, y).flip(0).cumsum(0).flip(0)]),
            "every state gets the increments below it; it needs those above it"),
    Mistake("summed over entries", lambda path, y: torch.cat([path[:1], path[:1] + _increments(path, y).cumsum(-1)]),
            "your sum runs along the entries of a state; the steps are dimension 0"),
    Mistake("residuals summed from the start", lambda path, y: torch.cat([path[:1], path[0] + (y - path[1:]).cumsum(0)]),
            "an increment is the step's result minus the state that it started from, X_j; you subtracted X_{j+1}"),
    Mistake("results summed", lambda path, y: torch.cat([path[:1], path[0] + y.cumsum(0)]),
            "you sum the steps' results; what adds up is what each step *changes*"),
    Mistake("one increment each", lambda path, y: torch.cat([path[:1], path[0] + _increments(path, y)]),
            "every state gets only the increment just above it; it needs the running sum of all of them"),
    Mistake("the whole sum for all", lambda path, y: torch.cat([path[:1], path[0] + _increments(path, y).sum(0, keepdim=True).expand_as(y)]),
            "every state gets the sum of *all* increments, also of those below it; the sum runs down the grid"),
    Mistake("summed over samples", lambda path, y: torch.cat([path[:1], path[0] + _increments(path, y).cumsum(1)]),
            "your sum runs along the batch, so samples get mixed; the steps are dimension 0"),
    Mistake("sign of the increments", lambda path, y: torch.cat([path[:1], path[0] - _increments(path, y).cumsum(0)]),
            "your increments have the wrong sign: what the step gives, minus what it was given"),
], tips=["`y - path[:-1]` holds all n increments at once",
         "`cumsum(0)` gives their running sums, and `torch.cat([path[:1], ...])` puts the start in front"])


# --- 5.2 -------------------------------------------------------------------------------------------------------------

def frozen(D, ts: Tensor, step, draw: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    """A sweep, path -> path, whose noise has been drawn before: one draw() for each step, in their order."""
    return _frozen_with(D, ts, step, torch.stack([draw() for _ in ts[1:]]))


def _frozen_with(D, ts, step, z):
    return lambda path: picard_sweep(path, all_at_once(D, path, ts, step, z))


def noisy_grids(generator: torch.Generator) -> Iterator[tuple]:
    """D, ts, step, a trajectory, and more noise than anybody needs."""
    for n, shape, schedule in zip((5, 3, 4, 2, 3), SHAPES, SCHEDULES):
        yield (Blob(schedule), falling(generator, n), ancestral, normal(generator, n + 1, *shape),
               normal(generator, 4 * n + 4, *shape))


def two_sweeps(function, D, ts, step, path, noise) -> tuple:
    """What the frozen sweep makes of the same trajectory, twice, and how many draws that took."""
    drawn = []

    def draw() -> Tensor:
        drawn.append(noise[len(drawn)])
        return drawn[-1]

    sweep = function(D, ts, step, draw)
    once, again = sweep(path), sweep(path)
    return once, again, len(drawn)


def _fresh_each_sweep(D, ts, step, draw):
    return lambda path: frozen(D, ts, step, draw)(path)


def _late(D, ts, step, draw):
    kept = []

    def sweep(path):
        z = torch.stack([draw() for _ in ts[1:]])
        kept.append(z)
        return _frozen_with(D, ts, step, sum(kept) / len(kept))(path)
    return sweep


FROZEN = Exercise("5.2", "A sweep whose noise stands still", frozen, noisy_grids, [
    Mistake("fresh noise in every sweep", _fresh_each_sweep,
            "the same trajectory gives two different results: noise is still drawn inside the sweep"),
    Mistake("noise averaged over the sweeps", _late,
            "noise is drawn again in every sweep, and averaging it makes it fainter: draw once, before the first sweep"),
    Mistake("one draw for all steps", lambda D, ts, step, draw: _frozen_with(D, ts, step, torch.stack([draw()] * (len(ts) - 1))),
            "all steps get one and the same noise; each step needs its own"),
    Mistake("a single draw", lambda D, ts, step, draw: _frozen_with(D, ts, step, draw()),
            "your z is the noise of a single step; stack one draw for each of them"),
    Mistake("one draw too many", lambda D, ts, step, draw: _frozen_with(D, ts, step, torch.stack([draw() for _ in ts])[1:]),
            "there are n + 1 times but only n steps, and you threw the first draw away: the sequential sampler uses it"),
    Mistake("last draw left over", lambda D, ts, step, draw: _frozen_with(D, ts, step, torch.stack([draw() for _ in ts])[:-1]),
            "there are n + 1 times but only n steps: you draw once more than the sequential sampler does"),
    Mistake("in the wrong order", lambda D, ts, step, draw: _frozen_with(D, ts, step, torch.stack([draw() for _ in ts[1:]]).flip(0)),
            "the last step gets the first noise: the sequential sampler draws from the top down"),
    Mistake("no noise", lambda D, ts, step, draw: _frozen_with(D, ts, step, torch.zeros_like(torch.stack([draw() for _ in ts[1:]]))),
            "it settles, but on samples without noise: that is not the sampler that we set out to follow"),
], tips=["a trajectory has n = len(ts) - 1 steps, and each needs one `draw()`",
         "everything in front of `def sweep` happens once; everything inside happens in each sweep"], call=two_sweeps)


# --- 5.3 -------------------------------------------------------------------------------------------------------------

def settled(change: Tensor, noise: Tensor, tolerance: float) -> int:
    """How many of the m states settle: those before the first whose worst sample moved (rms) by more than its share."""
    return _settled(_rms(change).amax(1) <= tolerance * noise)


def _rms(change: Tensor) -> Tensor:
    return change.flatten(2).square().mean(2).sqrt()


def _settled(small: Tensor, least: int = 1) -> int:
    return max(least, int(small.long().cumprod(0).sum()))


def changes(generator: torch.Generator) -> Iterator[tuple]:
    for shape in (*SHAPES, (3, 2), (1, 2), (4, 2)):
        m = int(torch.randint(4, 9, (), generator=generator))
        noise, tolerance = between(generator, 0.05, 2.0, m), between(generator, 0.02, 0.5).item()
        size = (0.6 * normal(generator, m, shape[0]) - 0.7).exp() * noise[:, None] * tolerance
        change = normal(generator, m, *shape)
        yield change / _rms(change).reshape(m, shape[0], *[1] * (len(shape) - 1)) * size.reshape(
            m, shape[0], *[1] * (len(shape) - 1)), noise, tolerance


SETTLED = Exercise("5.3", "How far the window may slide", settled, changes, [
    Mistake("all that are small", lambda change, noise, tolerance: max(1, int((_rms(change).amax(1) <= tolerance * noise).sum())),
            "you count every state that hardly moved, also below one that still moves: what stands on moving ground has not settled"),
    Mistake("maybe none", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance * noise, least=0),
            "the first state of the window has been made from an exact neighbour, so it settles whatever it moved by: at least one"),
    Mistake("argmax of none", lambda change, noise, tolerance: int((_rms(change).amax(1) > tolerance * noise).long().argmax()),
            "argmax finds the first that moved; where none did it says 0, and all have settled (where the first did, one has)"),
    Mistake("argmax of none, at least one", lambda change, noise, tolerance: max(
        1, int((_rms(change).amax(1) > tolerance * noise).long().argmax())),
            "what do you answer if no state moved too much? Then all of them settle, not one"),
    Mistake("one too few", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance * noise) - 1 or 1,
            "you stop one state before the first that moved too much; that one still counts"),
    Mistake("up to the last calm one", lambda change, noise, tolerance: max(
        [1, *(int(j) + 1 for j in (_rms(change).amax(1) <= tolerance * noise).nonzero())]),
            "you let all states settle down to the last calm one, also restless ones in between"),
    Mistake("the calmest sample", lambda change, noise, tolerance: _settled(_rms(change).amin(1) <= tolerance * noise),
            "the sample that moved least decides with you; it is the worst one that must be calm"),
    Mistake("mean absolute change", lambda change, noise, tolerance: _settled(
        change.flatten(2).abs().mean(2).amax(1) <= tolerance * noise),
            "you take the mean of absolute values; the root mean square was asked for, which large entries dominate"),
    Mistake("standard deviation", lambda change, noise, tolerance: _settled(change.flatten(2).std(2).amax(1) <= tolerance * noise),
            "a standard deviation takes the mean off first, and so misses a change that is the same in all entries"),
    Mistake("the last axis only", lambda change, noise, tolerance: _settled(
        change.square().mean(-1).sqrt().flatten(1).amax(1) <= tolerance * noise),
            "your mean runs over the last axis only, a row of a picture; it must run over all entries of a state"),
    Mistake("divided by the unit", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance / noise),
            "the tolerance is a share *of* the unit: with more noise more may change"),
    Mistake("the mean unit", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance * noise.mean()),
            "you measure all states in one mean unit; each has that of its own step"),
    Mistake("no tolerance", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= noise),
            "you compare with the whole unit; where is the tolerance?"),
    Mistake("one too many", lambda change, noise, tolerance: min(
        len(noise), 1 + _settled(_rms(change).amax(1) <= tolerance * noise, least=0)),
            "you count the first state that moved too much as settled"),
    Mistake("mean over the samples", lambda change, noise, tolerance: _settled(_rms(change).mean(1) <= tolerance * noise),
            "you average over the samples, so a calm one hides one that still moves; the worst decides"),
    Mistake("rms over all samples", lambda change, noise, tolerance: _settled(
        change.flatten(1).square().mean(1).sqrt() <= tolerance * noise),
            "you take the root mean square over the samples too, which hides one that still moves; the worst sample decides"),
    Mistake("norm", lambda change, noise, tolerance: _settled(change.flatten(2).norm(dim=2).amax(1) <= tolerance * noise),
            "the length of a change grows with the number of its entries; take the root *mean* square"),
    Mistake("largest entry", lambda change, noise, tolerance: _settled(change.flatten(1).abs().amax(1) <= tolerance * noise),
            "you take the largest entry; the root mean square over a sample's entries was asked for"),
    Mistake("no root", lambda change, noise, tolerance: _settled(_rms(change).square().amax(1) <= tolerance * noise),
            "you compare a mean square with a standard deviation: a root is missing"),
    Mistake("absolute tolerance", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance),
            "the tolerance is in units of each step's own noise, and you compare with the bare number"),
    Mistake("noise squared", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance * noise**2),
            "you measure in units of the noise's variance; its standard deviation is the unit"),
    Mistake("noise of the first step", lambda change, noise, tolerance: _settled(_rms(change).amax(1) <= tolerance * noise[0]),
            "each state has the noise of its own step as its unit; you took the first for all"),
    Mistake("the wrong way round", lambda change, noise, tolerance: _settled(_rms(change).amax(1) > tolerance * noise),
            "your comparison is the wrong way round: a state settles when it moves *less* than the tolerance"),
    Mistake("all or one", lambda change, noise, tolerance: len(noise) if bool((_rms(change).amax(1) <= tolerance * noise).all()) else 1,
            "you wait until the whole window is still; the leading part may go as soon as it is"),
], tips=["first one number for each state and sample: `change.flatten(2).square().mean(2).sqrt()`; then the worst sample",
         "`good.long().cumprod(0).sum()` counts the leading True of `good`"])


# --- 5.4 -------------------------------------------------------------------------------------------------------------

def recursions(generator: torch.Generator) -> Iterator[tuple]:
    for n, shape in zip((1, 5, 4, 6, 3), SHAPES):
        yield between(generator, 0.2, 1.3, n, shape[0]), normal(generator, n, *shape)


def _recursion(rule):
    """u by a wrong rule(a_j, u_before, r_j, r_before)."""
    def wrong(slopes, residuals):
        u, before, all_u = torch.zeros_like(residuals[0]), torch.zeros_like(residuals[0]), []
        for a, r in zip(slopes.reshape(*slopes.shape, *[1] * (residuals.ndim - 2)), residuals):
            all_u.append(u := rule(a, u, r, before))
            before = r
        return torch.stack(all_u)
    return wrong


def _shifted(slopes, residuals):
    return carry(torch.cat([slopes[:1], slopes[:-1]]), residuals)


def _unshaped(slopes, residuals):
    u, all_u = torch.zeros_like(residuals[0]), []
    for a, r in zip(slopes, residuals):
        all_u.append(u := a * u + r)
    return torch.stack(all_u)


def _one_axis(slopes, residuals):
    u, all_u = torch.zeros_like(residuals[0]), []
    for a, r in zip(slopes, residuals):
        all_u.append(u := a[:, None] * u + r)
    return torch.stack(all_u)


CARRY = Exercise("5.4", "Corrections carried down the grid", carry, recursions, [
    Mistake("Picard", lambda slopes, residuals: residuals.cumsum(0),
            "that is Picard: every correction is passed on in full. Where do the slopes enter?"),
    Mistake("residual multiplied too", _recursion(lambda a, u, r, before: a * (u + r)),
            "the slope belongs to the correction from above; step j's own residual is new and is not multiplied"),
    Mistake("nothing carried", lambda slopes, residuals: residuals.clone(),
            "each state is moved by its own residual only; the corrections from above are not carried on"),
    Mistake("only the residual before", _recursion(lambda a, u, r, before: a * before + r),
            "you carry on the residual of the step before; it is the whole *correction* that is carried, with all that is in it"),
    Mistake("slope on the residual", _recursion(lambda a, u, r, before: u + a * r),
            "the slope multiplies the wrong term: a correction from above passes through the step, the residual arises behind it"),
    Mistake("slope of the step before", _shifted,
            "what comes from state j passes through step j; you multiplied by the slope of the step above"),
    Mistake("slope of the step after", lambda slopes, residuals: carry(torch.cat([slopes[1:], slopes[-1:]]), residuals),
            "your slopes are one step ahead: what arrives at step j passes through step j, with a_j"),
    Mistake("from the bottom", lambda slopes, residuals: carry(slopes.flip(0), residuals.flip(0)),
            "you begin with the last step; corrections pass from the start down"),
    Mistake("starts from a residual", lambda slopes, residuals: carry(slopes, torch.cat([
        residuals[:1] + slopes[0].reshape(-1, *[1] * (residuals.ndim - 2)) * residuals[:1], residuals[1:]])),
            "you start from u = r_1, and then add r_1 once more; before the first step nothing is to be corrected"),
    Mistake("no residual", lambda slopes, residuals: torch.zeros_like(residuals),
            "all your corrections are 0: where does the first one come from?"),
    Mistake("sign of what is carried", _recursion(lambda a, u, r, before: r - a * u),
            "you subtract what is carried; a state that was too low makes the next one too low as well"),
    Mistake("what the slope leaves", _recursion(lambda a, u, r, before: (1 - a) * u + r),
            "you carry on 1 - a of the correction; the slope is the share that comes through"),
    Mistake("summed again", lambda slopes, residuals: carry(slopes, residuals).cumsum(0),
            "you sum the corrections; u holds already what comes from all steps above"),
    Mistake("only the last", lambda slopes, residuals: carry(slopes, residuals)[-1],
            "you return the last correction; all n are asked for"),
    Mistake("one new axis for pictures too", _one_axis,
            "right for points; a slope of shape (B,) needs as many new axes as a state has behind the first, for pictures three"),
    Mistake("kept too early", lambda slopes, residuals: torch.cat([torch.zeros_like(residuals[:1]), carry(slopes, residuals)[:-1]]),
            "your list begins with u_0, which is 0, and lacks the last correction: keep each u after (5.8), not before it"),
    Mistake("slopes unshaped", _unshaped,
            "a row of slopes has the shape (B,) and meets a batch (B, 2) or (B, 1, 8, 8): it has multiplied entries, not samples"),
    Mistake("sign", _recursion(lambda a, u, r, before: a * u - r),
            "the residual is added: it is what the state lacks"),
    Mistake("divided", _recursion(lambda a, u, r, before: u / a + r),
            "you divide by the slope: a step that shrinks differences must shrink the correction"),
], tips=["go through the grid in a loop: `u = a * u + r`, starting from u = 0, and keep every u",
         "a slope has one number for each sample: shape it like `a.reshape(-1, *[1] * (r.ndim - 1))` before it meets u"])


# --- 5.5 -------------------------------------------------------------------------------------------------------------

def corrected(nodes: Tensor, fine, coarse) -> Tensor:
    """The nodes (M+1, B, ...) after a sweep of parareal; fine(m, x) and coarse(m, x) lead through block m."""
    return _parareal(nodes, fine, coarse, lambda end, now, before: end + now - before)


def _parareal(nodes, fine, coarse, rule):
    """A sweep with rule(fine from the old node, coarse from the new node, coarse from the old node)."""
    new = [nodes[0]]
    for m in range(len(nodes) - 1):
        new.append(rule(fine(m, nodes[m]), coarse(m, new[m]), coarse(m, nodes[m])))
    return torch.stack(new)


def _with_next(nodes, fine, rule):
    """A sweep with rule(m, new node above, old node below, fine from the old node above)."""
    new = [nodes[0]]
    for m in range(len(nodes) - 1):
        new.append(rule(m, new[m], nodes[m + 1], fine(m, nodes[m])))
    return torch.stack(new)


def _in_sequence(nodes, fine, coarse):
    new = [nodes[0]]
    for m in range(len(nodes) - 1):
        new.append(fine(m, new[m]))
    return torch.stack(new)


def _twice_corrected(nodes, fine, coarse):
    new = [nodes[0]]
    for m in range(len(nodes) - 1):
        new.append(fine(m, new[m]) + coarse(m, new[m]) - coarse(m, nodes[m]))
    return torch.stack(new)


def _one_too_far(nodes, fine, coarse):
    ends = [fine(m, node) + coarse(m, nodes[m + 1]) - coarse(m, node) for m, node in enumerate(nodes[:-1])]
    return torch.stack([nodes[0], *ends])


def _one_block(D, edges: Tensor, inner: int, m: int, x: Tensor) -> Tensor:
    """`inner` DDIM steps through block m."""
    ts = edges[m] + (edges[m + 1] - edges[m]) * torch.linspace(0, 1, inner + 1, dtype=torch.float64)
    return final(D, x, ts, ddim).x


def blocks(generator: torch.Generator) -> Iterator[tuple]:
    for M, shape, schedule in zip((1, 4, 3, 5, 2), SHAPES, SCHEDULES):
        edges = falling(generator, M)
        yield (normal(generator, M + 1, *shape), partial(_one_block, Blob(schedule), edges, 4),
               partial(_one_block, Blob(schedule), edges, 1))


PARAREAL = Exercise("5.5", "Parareal's correction", corrected, blocks, [
    Mistake("fine only", lambda nodes, fine, coarse: _parareal(nodes, fine, coarse, lambda end, now, before: end),
            "each node gets the fine solution from the *old* node above it; that this node has moved meanwhile is nowhere corrected"),
    Mistake("fine from the new node", _in_sequence,
            "right, but nothing is gained: your fine solve starts from the new node, so every block waits for the one above it"),
    Mistake("fine from the new node, and corrected", _twice_corrected,
            "your fine solve starts from the new node, so there is nothing left to correct (and every block waits for the one above it)"),
    Mistake("coarse from the next node", _one_too_far,
            "both coarse steps lead through block m: from the new node m, and from node m as it was"),
    Mistake("coarse to the next node", lambda nodes, fine, coarse: _with_next(
        nodes, fine, lambda m, new, below, end: end + coarse(m, new) - coarse(m, below)),
            "the coarse step that you subtract starts from node m+1; both lead through block m, and start above it"),
    Mistake("the old node for a coarse step", lambda nodes, fine, coarse: _with_next(
        nodes, fine, lambda m, new, below, end: end + coarse(m, new) - below),
            "you subtract the old node itself; what is due is a coarse step from the old node above it"),
    Mistake("the old node corrected", lambda nodes, fine, coarse: _with_next(
        nodes, fine, lambda m, new, below, end: below + coarse(m, new) - coarse(m, nodes[m])),
            "you correct the old node; it is the end of the fine solve that is corrected"),
    Mistake("fine from the next node", lambda nodes, fine, coarse: _parareal(
        nodes, lambda m, x: fine(m, nodes[m + 1]), coarse, lambda end, now, before: end + now - before),
            "your fine solve of block m starts at its lower end; it starts from node m"),
    Mistake("sign of the correction", lambda nodes, fine, coarse: _parareal(nodes, fine, coarse, lambda end, now, before: end - now + before),
            "the correction has the wrong sign: coarse from the new node, minus coarse from the old one"),
    Mistake("correction without subtraction", lambda nodes, fine, coarse: _parareal(nodes, fine, coarse, lambda end, now, before: end + now),
            "you add a whole coarse step on top of the fine one; only the *difference* of two coarse steps is the correction"),
    Mistake("coarse only", lambda nodes, fine, coarse: _parareal(nodes, fine, coarse, lambda end, now, before: now),
            "that is the coarse solution: the fine one is never used"),
    Mistake("nodes for steps", lambda nodes, fine, coarse: _by_nodes(nodes, fine),
            "the correction is the difference of two coarse *steps*; you took the difference of the nodes themselves, "
            "which is Picard's slope of 1"),
    Mistake("fine and coarse swapped", lambda nodes, fine, coarse: corrected(nodes, coarse, fine),
            "fine and coarse have changed places: the fine solver must not be run from the new nodes"),
    Mistake("the start left out", lambda nodes, fine, coarse: corrected(nodes, fine, coarse)[1:],
            "you return M nodes; the start belongs to them too, in front"),
], tips=["two loops help: one over all blocks for the fine ends, which need only the old nodes, and one down the nodes",
         "in the second loop keep a list `new = [nodes[0]]`, and use new[m] and nodes[m] for the two coarse steps"])


def _by_nodes(nodes, fine):
    new = [nodes[0]]
    for m in range(len(nodes) - 1):
        new.append(fine(m, nodes[m]) + new[m] - nodes[m])
    return torch.stack(new)


# --- 5.6 -------------------------------------------------------------------------------------------------------------

def how_much_sooner(model: CostModel, n: int, rounds: int, evaluations: int, people: int, devices: int) -> float:
    """Seconds with the people shared out over the devices, divided by seconds with all devices on one parallel run."""
    return model.sequential(n, -(-people // devices)) / model.parallel(rounds, evaluations, people, devices)


def offices(generator: torch.Generator) -> Iterator[tuple]:
    for people, devices in ((1, 1), (1, 8), (3, 8), (20, 8), (7, 2), (5, 1), (50, 64), (130, 64)):
        n = int(torch.randint(100, 1000, (), generator=generator))
        rounds = int(torch.randint(5, 40, (), generator=generator))
        latency, per_row, exchange, message = (1e-3 * between(generator, 0.2, 5.0, 4) * torch.tensor([1, 0.3, 0.5, 0.02])).tolist()
        yield CostModel(latency, per_row, exchange, message), n, rounds, int(n * between(generator, 1.5, 9.0)), people, devices


def _ratio(sequential, parallel):
    """A wrong answer: sequential(model, n, people, devices) over parallel(model, n, rounds, evaluations, people, devices)."""
    def wrong(model, n, rounds, evaluations, people, devices):
        return (sequential or _shared)(model, n, people, devices) / (parallel or _together)(
            model, n, rounds, evaluations, people, devices)
    return wrong


def _shared(model, n, people, devices):
    return model.sequential(n, -(-people // devices))


def _together(model, n, rounds, evaluations, people, devices):
    return model.parallel(rounds, evaluations, people, devices)


CHOICE = Exercise("5.6", "Share out the people, or the steps?", how_much_sooner, offices, [
    Mistake("all on one device", _ratio(lambda model, n, people, devices: model.sequential(n, people), None),
            "in the first way, too, all devices work: nobody has to draw for all the people"),
    Mistake("one person only", _ratio(lambda model, n, people, devices: model.sequential(n), None),
            "in the first way a device with several people draws them as one batch, which takes longer than one"),
    Mistake("one person after the other", _ratio(lambda model, n, people, devices: -(-people // devices) * model.sequential(n), None),
            "a device draws its people together, as *one* batch; you let them queue, and pay the latency for each"),
    Mistake("people in fractions", _ratio(lambda model, n, people, devices: model.sequential(n, people / devices), None),
            "people come whole: the busiest device has more than the average, and everybody's wait is counted until the last is served"),
    Mistake("rounded down", _ratio(lambda model, n, people, devices: model.sequential(n, max(1, people // devices)), None),
            "you count the people on the idlest device; the busiest one is last to finish"),
    Mistake("rounded", _ratio(lambda model, n, people, devices: model.sequential(n, max(1, round(people / devices))), None),
            "you round to the nearest; if people are left over, somebody has one more, however few are left"),
    Mistake("always one more", _ratio(lambda model, n, people, devices: model.sequential(n, people // devices + 1), None),
            "you add one even where the people can be shared out evenly"),
    Mistake("time shared out", _ratio(lambda model, n, people, devices: model.sequential(n, people) / devices, None),
            "you divide the time of one device by their number; but latency is not shared, and people come whole"),
    Mistake("rounds for steps", lambda model, n, rounds, *rest: how_much_sooner(model, rounds, rounds, *rest),
            "the first way is sequential: it takes all n steps, not the rounds of the second"),
    Mistake("evaluations for steps", lambda model, n, rounds, evaluations, *rest: how_much_sooner(
        model, evaluations, rounds, evaluations, *rest),
            "the first way is sequential, with n evaluations in a row; E counts those of the second"),
    Mistake("the busiest device's people", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        rounds, evaluations, -(-people // devices), devices)),
            "in the second way everybody's rows are shared out by step; you gave it the people of one device only"),
    Mistake("people twice", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        rounds, evaluations * people, people, devices)),
            "model.parallel multiplies by its batch already; you have the people in it twice"),
    Mistake("devices twice", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        rounds, evaluations / devices, people, devices)),
            "model.parallel shares the rows out already; you have the devices in it twice"),
    Mistake("one parallel run after the other", _ratio(None, lambda model, n, rounds, evaluations, people, devices: (
        people * model.parallel(rounds, evaluations, 1, devices))),
            "the second way draws all pictures in *one* run, so the rounds are waited for once, not once a person"),
    Mistake("difference", lambda model, n, rounds, evaluations, people, devices: _shared(
        model, n, people, devices) - _together(model, n, rounds, evaluations, people, devices),
            "that is how many seconds sooner; *times* sooner is a ratio"),
    Mistake("upside down", lambda *case: 1 / how_much_sooner(*case),
            "your ratio is upside down: how many times *sooner* is the time of the first way over that of the second"),
    Mistake("rows of one person", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        rounds, evaluations, 1, devices)),
            "evaluations are counted for one sample; the second way draws all the people's"),
    Mistake("the second way on one device", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        rounds, evaluations, people)),
            "in the second way the rows of a sweep are shared out over the devices"),
    Mistake("steps for rounds", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        n, evaluations, people, devices)),
            "the second way waits once a round, not once a step"),
    Mistake("latency shared", _ratio(None, lambda model, n, rounds, evaluations, people, devices: model.parallel(
        rounds, evaluations, people, devices) - rounds * model.latency * (1 - 1 / devices)),
            "you share the latency out over the devices: each of them waits for it, in every round"),
    Mistake("messages forgotten", _ratio(None, lambda model, n, rounds, evaluations, people, devices: (
        rounds * model.latency + evaluations * people / devices * model.per_row)),
            "after each round the devices tell each other their results: where is the exchange?"),
    Mistake("messages to oneself", _ratio(None, lambda model, n, rounds, evaluations, people, devices: (
        rounds * (model.latency + model.exchange) + evaluations * people * (model.per_row / devices + model.exchange_per_row))),
            "a single device has nobody to exchange with"),
    Mistake("only messages' latency", _ratio(None, lambda model, n, rounds, evaluations, people, devices: (
        model.parallel(rounds, evaluations, people, devices) - (devices > 1) * evaluations * people * model.exchange_per_row)),
            "messages take time for every row as well, and every device receives all rows"),
], tips=["the first way is `model.sequential(n, batch)` on the busiest device: how many people does it have?",
         "the second way is `model.parallel(...)` with all the people as its batch"], rtol=1e-6, atol=0.0)


EXERCISES = [SWEEP, FROZEN, SETTLED, CARRY, PARAREAL, CHOICE]

PREDICTIONS = [
    Prediction("5.1", "b", {
        "a": "The first states only get better, but those below them get the sum of all errors above.",
        "b": "Picard passes every error on in full, where the true steps would shrink it; the factorial wins in the end.",
        "c": "At most n sweeps are needed, for one more state is exact after each; but the sum spreads news at once, "
             "and nearly all is right long before.",
    }),
    Prediction("5.2", "b", {
        "a": "Finer steps each do less: what counts is how much they contract *together*, and that stays the same.",
        "b": "The number of sweeps follows L, the contraction of all steps together, which hardly depends on their number.",
        "c": "The grid is finer, but the way is as long, and its noise as well: nothing gets easier.",
    }),
    Prediction("5.3", "c", {
        "a": "The rounds are few again. But a round now has sixteen times the rows, and those are no longer free.",
        "b": "More samples make the *sequential* sampler efficient: it fills its batches by itself.",
        "c": "Idle hands are what parallel sampling puts to work, and the batch has already given them work.",
    }),
    Prediction("5.4", "c", {
        "a": "Rounds are the clock only where a whole sweep takes no longer than one evaluation.",
        "b": "The few rounds are real, but each of them evaluates hundreds of pictures, and two cores do not have that much room.",
        "c": "All the evaluations of all the sweeps have to be done by the same few cores, which one picture kept busy before.",
    }),
]
