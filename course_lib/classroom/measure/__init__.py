"""What fills data/ledger.csv and the tables beside it: one function a measurement, run by `course measure NAME`.

Each takes (device, samples, seeds), writes its rows under data/ and returns them.
"""

from .emoji_runs import latent
from .latent_runs import latent_race, latent_sweep
from .parallel_runs import devices, parallel
from .quality import baseline, distillation, few_steps, guidance, ring_ode, ring_sde, same_images
from .solver_errors import solvers

MEASUREMENTS = {measurement.__name__: measurement for measurement in (
    baseline, few_steps, same_images, guidance, distillation, latent, latent_race, latent_sweep, ring_sde, ring_ode, solvers,
    parallel, devices)}
