"""Fast sampling of score-based diffusion models: the library that the notebooks build up, chapter by chapter.

One currency. Every model, exact or learned, is a *denoiser* `D(x, t, cond=None) -> x0_hat`; score, noise and ODE slope
are functions of it. A *step* is a pure function `step(D, x, t, s, z=None, cond=None) -> x_s` from time t to s < t.
A *sampler* is an iterator of states over a decreasing time grid. Data sits at t = 0, noise at t = 1:

    x_t = alpha(t) x_0 + sigma(t) eps,     eps ~ N(0, I)

The map, bottom to top; a module imports only from modules above it in this list:

    files           check sums and atomic writes
    schedules       alpha(t), sigma(t), all that follows from them, and time grids
    denoiser        the currency: score, eps, velocity; parameterisations; guidance
    targets         Gaussian mixtures, whose denoiser is known in closed form
    networks        MLP, U-Net, DiT; the networks that judge samples
    autoencoders    pictures to small latents and back: KL, VQ, and the linear case with its closed form
    sampling        the driver: turns a step into a sampler and counts evaluations
    score_matching  implicit, sliced and denoising losses; Langevin dynamics
    sde_samplers    Euler-Maruyama, ancestral (DDPM), predictor-corrector
    ode_samplers    Euler, Heun, adaptive RK45; encoding and likelihood
    fast_samplers   DDIM, DPM-Solver++, optimised time grids
    parallel        Picard and parareal: many steps of a trajectory at once, on one device or many
    diffusers_bridge  the course's denoisers and the schedulers of diffusers
    training        the loop: EMA, atomic checkpoints, exact resume, data-parallel
    progressive     distillation of guidance into one evaluation, and of two steps into one
    consistency     consistency functions, learnt in pairs of times or in continuous time; flow maps
    data            Fashion-MNIST, emoji, sentences and words, each checked by its sum
    text            captions as word numbers; sentences to small latents and back
    metrics         two-sample distances
    ledger          the table of what every method costs and gives
    plotting        the figures
    recipes         the trained models that the course ships
    images          images from the shipped model, alone or under torchrun
    widgets         sliders around pure functions
    classroom       exercises, their checks, the `course` command and what it measures
"""
