"""A setting that a method can't have is refused by its name."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from CTMicroSRLib.training.setting_checks import (
    check_above_zero,
    check_at_least,
    check_choice,
    check_not_negative,
    check_share,
    check_weights,
)


@pytest.mark.parametrize("value", [0.0, 1e-9, 5.0])
def test_what_must_not_be_negative_may_be_zero(value):
    check_not_negative(SimpleNamespace(noise=value), "noise")


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_what_is_negative_or_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"^noise must not be negative$"):
        check_not_negative(SimpleNamespace(rate=1.0, noise=value), "rate", "noise")


@pytest.mark.parametrize("value", [-1.0, 0.0, math.inf, math.nan])
def test_what_must_be_above_zero_is_not_zero_either(value):
    check_above_zero(SimpleNamespace(learning_rate=1e-9), "learning_rate")
    with pytest.raises(ValueError, match=r"^learning_rate must be above 0$"):
        check_above_zero(SimpleNamespace(learning_rate=value), "learning_rate")


def test_every_setting_called_a_weight_is_checked_and_no_other():
    check_weights(SimpleNamespace(cycle_weight=0.0, offset=-1.0))
    with pytest.raises(ValueError, match=r"^cycle_weight must"):
        check_weights(SimpleNamespace(gan_weight=1.0, cycle_weight=-1.0))


def test_a_count_may_be_the_least_one():
    check_at_least(SimpleNamespace(channels=2, blocks=3), 2, "channels", "blocks")
    with pytest.raises(ValueError, match=r"^blocks must be at least 4$"):
        check_at_least(SimpleNamespace(channels=4, blocks=3), 4, "channels", "blocks")


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_share_may_be_none_and_all(value):
    check_share(SimpleNamespace(pretrain_share=value), "pretrain_share")


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match=r"^pretrain_share must be from 0 to 1$"):
        check_share(SimpleNamespace(pretrain_share=value), "pretrain_share")


def test_the_choices_are_told_to_who_made_none_of_them():
    check_choice(SimpleNamespace(power=2), "power", (1, 2))
    with pytest.raises(ValueError, match=r"^power is 3, and must be one of 1, 2$"):
        check_choice(SimpleNamespace(power=3), "power", (1, 2))
