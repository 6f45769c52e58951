"""The kernels that can be compiled: what they compute, and that compiling changes only rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lav2.llama import kernels
from lav2.llama.model import Linear

SIZE = 48


@pytest.fixture
def arguments():
    """For each kernel what it is called with."""
    draw = torch.Generator().manual_seed(0)

    def states(*shape):
        return torch.randn(*shape, generator=draw).bfloat16().requires_grad_()

    def parameter(size):
        return torch.randn(size, generator=draw).requires_grad_()

    x = states(2, 5, SIZE)
    return {
        kernels.rms_norm: (x, parameter(SIZE), 1e-5),
        kernels.swiglu: (x, states(2, 5, SIZE)),
        kernels.biased: (x, parameter(SIZE)),
        kernels.scaled: (x, parameter(SIZE)),
        kernels.biased_and_scaled: (x, parameter(SIZE), parameter(SIZE)),
        kernels.TrainedScale.apply: (x, parameter(SIZE), parameter(SIZE)),
    }


def test_norm_is_that_of_torch():
    x, norm = torch.randn(3, 7, SIZE), nn.RMSNorm(SIZE, eps=1e-5)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(kernels.rms_norm(x, norm.weight, 1e-5), norm(x))


def test_loss_and_slope_are_those_of_torch():
    logits, labels = torch.randn(6, 11, requires_grad=True), torch.tensor([0, 10, 3, 3, 7, 1])
    expected = F.cross_entropy(logits, labels, reduction="sum")
    loss, slope = kernels.loss_and_slope(logits.detach(), labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(slope, *torch.autograd.grad(expected, logits))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_scale_that_trains_keeps_its_result_alone(dtype, close):
    """The gradients are those that autograd finds from what it was given, and of that nothing is kept."""
    torch.manual_seed(0)
    y = torch.randn(2, 50, SIZE).to(dtype).requires_grad_()
    bias, scale = torch.randn(SIZE, requires_grad=True), torch.randn(SIZE, requires_grad=True)
    slope, kept = torch.randn(2, 50, SIZE).to(dtype), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        output = kernels.TrainedScale.apply(y, bias, scale)
    expected = kernels.biased_and_scaled(y, bias, scale)
    assert torch.equal(output, expected) and set(kept) == {output.data_ptr(), scale.data_ptr()}
    for found, plain in zip(
        *(torch.autograd.grad(x, (y, bias, scale), slope) for x in (output, expected)), strict=True
    ):
        assert (found - plain).norm() <= close * plain.norm()


def test_a_scale_of_zero_gets_no_gradient():
    y, scale = torch.randn(3, 2), torch.tensor([0.0, 2.0], requires_grad=True)
    kernels.TrainedScale.apply(y, torch.zeros(2), scale).sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor([0.0, y[:, 1].sum()]))


@pytest.mark.slow
def test_compiling_changes_only_rounding(arguments):
    def results(kernel, inputs):
        output = kernel(*inputs)
        wanted = [x for x in inputs if isinstance(x, torch.Tensor)]
        return [output, *torch.autograd.grad(output, wanted, torch.ones_like(output))]

    plain = {kernel: results(kernel, inputs) for kernel, inputs in arguments.items()}
    logits, labels = torch.randn(6, 11), torch.tensor([0, 10, 3, 3, 7, 1])
    loss = kernels.loss_and_slope(logits, labels)
    kernels.fuse()
    try:
        for kernel, inputs in arguments.items():
            torch.testing.assert_close(results(kernel, inputs), plain[kernel], rtol=2e-2, atol=2e-2)  # bf16
        torch.testing.assert_close(kernels.loss_and_slope(logits, labels), loss)
    finally:
        kernels.fuse(False)


@pytest.mark.parametrize("bias", [False, True])
def test_a_row_of_bf16_is_multiplied_as_exactly_as_many(bias, monkeypatch):
    """Both ways sum in fp32 and round once, so that they differ by no more than that rounding."""
    torch.manual_seed(0)
    linear = Linear(256, 96, bias=bias, dtype=torch.bfloat16)
    rows = torch.randn(5, 1, 256).bfloat16()
    calls = []
    product = kernels.row_product
    monkeypatch.setattr("lav2.llama.model.row_product", lambda *given: calls.append(1) or product(*given))
    with torch.inference_mode():
        together, alone = linear(rows), torch.stack([linear(row[None])[0] for row in rows])
        wide = F.linear(rows.float(), linear.weight.float())
        wide = wide if linear.bias is None else wide + linear.bias.float()
    assert len(calls) == 5 and alone.shape == together.shape
    assert (alone - wide).abs().max() <= 1.01 * (together - wide).abs().max() + 2**-8 * bias
    linear(rows[:1])  # with gradients it is the plain layer
    assert len(calls) == 5
