"""SR-CycleGAN's training step as its paper describes it, in torch's stock layers; the trainer is timed beside it.

Layers, order of the passes and losses are those of P1 (J Med Imaging 2022, Figs 3 and 17, eq. 8, Table 1) with the
weights of its Table 1 and the least-squares loss of its code; no identity term, which the paper does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS, ssim

RATE = 1e-5


class Residual(nn.Module):
    """x + two reflect-padded convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


def clinical_to_micro() -> nn.Module:
    """G1."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(1, 64, 7), nn.InstanceNorm2d(64), nn.PReLU()]
    layers += [Residual(64) for _ in range(9)]
    layers += [nn.ReflectionPad2d(1), nn.Conv2d(64, 64, 3), nn.InstanceNorm2d(64), nn.PReLU()]
    for width in (64, 32, 16):
        layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.InstanceNorm2d(2 * width), nn.PixelShuffle(2)]
        layers += [nn.PReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(8, 1, 7), nn.Tanh())


def micro_to_clinical() -> nn.Module:
    """G2."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(1, 64, 7), nn.InstanceNorm2d(64), nn.ReLU(True)]
    for width in (64, 128):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True)]
    layers += [Residual(256) for _ in range(9)]
    for width in (256, 128):
        layers += [nn.ConvTranspose2d(width, width // 2, 3, 2, 1, 1), nn.InstanceNorm2d(width // 2), nn.ReLU(True)]
    for width in (64, 128, 256):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(512, 1, 7), nn.Tanh())


def discriminator() -> nn.Module:
    """The 70x70 PatchGAN."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for width, stride in ((64, 2), (128, 2), (256, 1)):
        layers += [nn.Conv2d(width, 2 * width, 4, stride, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))


class PaperLoop:
    """The four networks, two optimisers and the step."""

    def __init__(self, device: str) -> None:
        self.g1, self.g2 = clinical_to_micro().to(device), micro_to_clinical().to(device)
        self.d_micro, self.d_clinical = discriminator().to(device), discriminator().to(device)
        generators = [*self.g1.parameters(), *self.g2.parameters()]
        self.discriminators = [*self.d_micro.parameters(), *self.d_clinical.parameters()]
        self.generator_optimiser = torch.optim.Adam(generators, lr=RATE, betas=(0.5, 0.999))
        self.discriminator_optimiser = torch.optim.Adam(self.discriminators, lr=RATE, betas=(0.5, 0.999))

    def step(self, clinical: Tensor, micro: Tensor) -> None:
        """One update of the generators, one of the discriminators."""
        fine, shrunk = self.g1(clinical), self.g2(micro)
        cycled_clinical, cycled_micro = self.g2(fine), self.g1(shrunk)
        for parameter in self.discriminators:
            parameter.requires_grad_(False)
        averaged, repeated = functional.avg_pool2d(fine, 8), functional.interpolate(shrunk, scale_factor=8)
        constants = SSIM_CONSTANTS["paper"]
        loss = (self.d_micro(fine) - 1).square().mean() + (self.d_clinical(shrunk) - 1).square().mean()
        loss = loss + functional.l1_loss(cycled_clinical, clinical) + functional.l1_loss(cycled_micro, micro)
        loss = loss + 2 - ssim(clinical, averaged, constants) - ssim(micro, repeated, constants)
        loss = loss + 0.7 * functional.l1_loss(averaged, clinical) + 0.3 * functional.l1_loss(repeated, micro)
        self.generator_optimiser.zero_grad()
        loss.backward()
        self.generator_optimiser.step()
        for parameter in self.discriminators:
            parameter.requires_grad_(True)
        self.discriminator_optimiser.zero_grad()
        for network, real, made in ((self.d_micro, micro, fine), (self.d_clinical, clinical, shrunk)):
            real_loss, made_loss = (network(real) - 1).square().mean(), network(made.detach()).square().mean()
            (0.5 * (real_loss + made_loss)).backward()
        self.discriminator_optimiser.step()
