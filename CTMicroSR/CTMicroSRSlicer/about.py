"""What Slicer's Help & Acknowledgement says."""

from slicer.i18n import tr as _

PAPERS = (
    "Zheng et al., SR-CycleGAN: super-resolution of clinical CT to micro-CT level with multi-modality super-resolution "
    "loss, Journal of Medical Imaging 2022",
    "Zheng et al., Multi-modality super-resolution loss for GAN-based super-resolution of clinical CT images using "
    "micro CT "
    "image database, SPIE Medical Imaging 2020",
    "Zheng et al., Micro CT image-assisted cross modality super-resolution of clinical CT images utilizing synthesized "
    "training dataset, 2020",
    "Li et al., Micro-CT synthesis and inner ear super resolution via generative adversarial networks and Bayesian "
    "inference, ISBI 2021",
)


def helpText() -> str:
    """What the module does and how to start."""
    return _(
        "<p>Makes the lungs of a chest CT eight times finer in-plane. The result lies where the input's anatomy is, "
        "agrees "
        "with what the scanner measured, and comes with a map of how sure it is.</p>"
        "<ol><li>Load a chest CT (or Simulated specimen in Sample Data) and choose it as Input CT.</li>"
        "<li>Choose a region: the lungs, a box (ROI), or everything. The line below says what it will need.</li>"
        "<li>Click Super-resolve. The first time it asks to install PyTorch.</li>"
        "<li>Look: input and result side by side; Show uncertainty lays a map in HU over the result.</li></ol>"
        "<p><b>Research use, not for diagnosis.</b> Detail finer than the scanner resolves is the model's "
        "expectation, not a "
        "finding. No image leaves this computer.</p>"
    )


def acknowledgementText() -> str:
    """Whose work this builds on."""
    return _("<p>After the work of:</p><ul>{papers}</ul>").format(
        papers="".join(f"<li>{paper}</li>" for paper in PAPERS)
    )
