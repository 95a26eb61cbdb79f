"""The words of the page on a run, explained."""

GLOSSARY = {
    "encoder, guide, q(z|x)": (
        "The network that returns an approximate posterior for any datum. It is trained for "
        "all data together."
    ),
    "posterior, p(z|x)": (
        "The distribution of the latents of a datum under the model. The guide approximates it."
    ),
    "log p(x)": (
        "The log density of a datum under the model, in nats. All estimates on this page are "
        "lower bounds in expectation."
    ),
    "ELBO": (
        "E log p(x, z) - log q(z|x), the lower bound of log p(x) that is maximized in training."
    ),
    "proposal": (
        "The distribution from which latents are sampled: the guide, or a refined proposal."
    ),
    "importance weight": ("p(x, z) / q(z|x) of a sample from a proposal. Its mean is p(x)."),
    "refined proposal": (
        "A mixture of Student t distributions near the posterior of one datum. It is found "
        "from the modes and curvatures of p(z|x) and fitted to weighted samples. Its weights "
        "are of fresh samples."
    ),
    "k-hat": (
        "Shape of the tail of the importance weights of a datum. Above 0.7 a few samples "
        "carry most of the weight, and no number of samples that is practical makes the "
        "estimate reliable (Vehtari et al. 2024)."
    ),
    "effective sample size": (
        "Number of exact posterior samples that are worth as much as the weighted samples."
    ),
    "cured, uncured": (
        "The guide's k-hat of a datum is above the limit. After refinement it is below the "
        "limit (cured) or still above it (uncured)."
    ),
    "improbable": (
        "log p(x) of a datum is reliable, and lower than for 99.5% of data simulated from the "
        "model. The datum is not like the training data."
    ),
    "approximation gap": ("Part of log p(x) - ELBO that the best q of the guide's family has."),
    "amortization gap": (
        "Part of log p(x) - ELBO because the encoder does not return the best q of its family "
        "(Cremer et al. 2018)."
    ),
    "calibration, SBC": (
        "Latents and data are simulated from the model. The rank of the true latent among "
        "posterior samples is uniform if the samples are right (Talts et al. 2018)."
    ),
    "coverage": (
        "Share of simulations with the truth inside an interval or region. A 90% interval of "
        "the right posterior contains the truth in 90% of them."
    ),
    "TARP": (
        "Calibration of all latents together, by their distance from a random point (Lemos et "
        "al. 2023)."
    ),
    "active unit": ("A latent with a posterior mean that changes with the data."),
    "aggregate posterior": (
        "The distribution of the latents of all data. It is near the prior if samples from "
        "the prior are to look like data."
    ),
}
