"""How well codes keep factors apart: the study's metrics, for any encoder's codes.

Symbols: N items, L latents, K factors, V_k values of factor k, B blocks of latents. Codes are
(N, L); a VAE has B = L blocks of one latent each, an encoder with subspaces has a block for each
of them. Metrics read codes and labels alone and never run an encoder.

Definitions: Locatello et al. 2019, "Challenging Common Assumptions in the Unsupervised Learning of
Disentangled Representations", unless a function names another source.

scikit-learn and LightGBM come with `pip install 'adde[study]'` and are imported when a metric needs
them.
"""

from adde.disentanglement.coded import Coded, code
from adde.disentanglement.distributions import irs, unsupervised
from adde.disentanglement.information import mig, modularity
from adde.disentanglement.prediction import dci, downstream, explicitness, sap
from adde.disentanglement.probes import Probes, probe
from adde.disentanglement.scores import Scores, as_text, read_codes, score
from adde.disentanglement.votes import beta_vae, factor_vae, rf_metric_2

__all__ = [
    "Coded",
    "Probes",
    "Scores",
    "as_text",
    "beta_vae",
    "code",
    "dci",
    "downstream",
    "explicitness",
    "factor_vae",
    "irs",
    "mig",
    "modularity",
    "probe",
    "read_codes",
    "rf_metric_2",
    "sap",
    "score",
    "unsupervised",
]
