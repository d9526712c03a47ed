"""State space and recurrent layers against other people's code, or the papers' sums written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from linviz import layers
from linviz.peers import theirs

D, T = 24, 19


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def perturbed(layer):
    """The layer with no parameter left at its special first value."""
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def same(ours, reference, tolerance=1e-5):
    """Equal, relative to the greatest number; by default both are in float32."""
    assert ours.shape == reference.shape
    error = ((ours - reference).abs().max() / reference.abs().max()).item()
    assert error <= tolerance, f"differs by {error:.1e}"


# --- Mamba and Mamba-2: transformers, float32 ----------------------------------------------------

BIASED = {"use_bias": True, "use_conv_bias": False, "expand": 3, "conv_kernel": 3}
OURS = {
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
    "expand": "expand",
    "conv_kernel": "conv",
    "time_step_rank": "rank",
    "time_step_limit": "dt_limit",
    "n_groups": "groups",
    "head_dim": "P",
}
HEADS = {"head_dim": 8, "chunk_size": 8}
MIXERS = {
    "mamba": ("Mamba", {"time_step_rank": 3}),
    "mamba biased": ("Mamba", BIASED),
    "falcon mamba": ("FalconMamba", {}),
    "falcon mamba biased": ("FalconMamba", BIASED),
    "mamba2": ("Mamba2", HEADS | {"n_groups": 1, "num_heads": 6}),
    "mamba2 biased": ("Mamba2", HEADS | BIASED | {"n_groups": 3, "num_heads": 9}),
}


def pair(case, **more):
    """Their mixer with random weights, ours with the same, and a cache for theirs."""
    transformers = pytest.importorskip("transformers")
    model, given = MIXERS[case]
    given = given | more
    config = getattr(transformers, f"{model}Config")(
        hidden_size=D, state_size=5, num_hidden_layers=1, **given
    )
    name = "falcon_mamba" if model == "FalconMamba" else model.lower()
    reference = theirs(name, f"{model}Mixer")(config, 0, initialize_mixer_weights=False).eval()
    for p in reference.parameters():
        torch.nn.init.normal_(p, std=0.2)  # so small that the norms' eps is seen
    options = {OURS[key]: value for key, value in given.items() if key in OURS}
    options |= {"norm_bcdt": True} if model == "FalconMamba" else {}
    ours = layers.make(model.removeprefix("Falcon").lower(), D, N=5, **options)
    mine = ours.state_dict()
    weights = {n.replace("conv1d", "conv"): p for n, p in reference.state_dict().items()}
    ours.load_state_dict({n: p.reshape(mine[n].shape) for n, p in weights.items()})
    return reference, ours, transformers.DynamicCache(config=config)


@torch.no_grad()
@pytest.mark.parametrize("case", MIXERS)
def test_mamba_is_that_of_transformers(case):
    reference, ours, cache = pair(case)
    x, state = torch.randn(2, T, D), None
    for piece in (x[:, :14], *x[:, 14:].split(1, 1)):  # prefill, then single steps
        expected = reference(piece, cache_params=cache)
        y, state = ours(piece, state)
        same(y, expected)
    S = state["S"].mT if case.startswith("mamba2") else state["h"]
    same(S, cache.get_recurrent_state(0, state_idx=0))
    past = cache.get_conv_state(0, state_idx=0).mT
    same(state["conv"], past[:, past.shape[1] - state["conv"].shape[1] :])


@torch.no_grad()
def test_mamba2_limits_its_steps():
    reference, ours, _ = pair("mamba2", time_step_limit=(0.4, 0.7))  # their single step does not
    x = torch.randn(2, T, D)
    y = ours(x)[0]
    same(y, reference(x))
    ours.dt_limit = (0.0, math.inf)
    assert (ours(x)[0] - y).abs().max() > 1e-2


# --- S4 and H3: the sums of their papers, float64 ------------------------------------------------


def kernel(system, discretization):
    """kappa [D, T] of a diagonal system."""
    dt, A, C = system.dt_log.exp()[:, None], -system.A_log.exp(), system.C
    if system.A_imag is not None:
        A, C = A + 1j * system.A_imag, C[..., 0] + 1j * C[..., 1]
    if discretization == "zoh":
        a, b = (dt * A).exp(), ((dt * A).exp() - 1) / A
    else:
        a, b = (2 + dt * A) / (2 - dt * A), 2 * dt / (2 - dt * A)
    terms = [(C * a**lag * b).sum(-1) for lag in range(T)]
    return torch.stack(terms, -1).real * (1 if system.A_imag is None else 2)


def convolved(x, kappa):
    """sum_j kappa_j x_{t-j} along axis 1 of [B, T, D]."""
    shifted = [F.pad(x, (0, 0, j, 0))[:, : x.shape[1]] for j in range(kappa.shape[-1])]
    return sum(kappa[:, j] * past for j, past in enumerate(shifted))


@torch.no_grad()
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["lin", "inv", "legs", "real"])
def test_s4_is_a_convolution(init, discretization):
    layer = layers.S4(D, N=6, init=init, discretization=discretization).double()
    layer, x = perturbed(layer), torch.randn(2, T, D, dtype=torch.float64)
    y = convolved(x, kernel(layer.system, discretization)) + layer.system.D * x
    same(layer(x)[0], F.glu(layer.out(F.gelu(y))), 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_h3_is_two_convolutions(discretization):
    layer = perturbed(layers.H3(D, N=6, discretization=discretization).double())
    x = torch.randn(2, T, D, dtype=torch.float64)
    q, k, v = layer.q(x), layer.k(x), layer.v(x)
    kv = convolved(k, layer.c) * v
    s = convolved(kv, kernel(layer.system, discretization)) + layer.system.D * kv
    same(layer(x)[0], layer.out(q * s), 1e-12)


def test_modes():
    n, pi = torch.arange(8), math.pi
    modes = {
        init: layers.S4(2, N=8, init=init).system()[1] for init in ("lin", "inv", "legs", "real")
    }
    same(modes["lin"][0], -0.5 + 1j * pi * n)
    same(modes["inv"][0], -0.5 + 1j * 16 / pi * (16 / (2 * n + 1) - 1))
    same(modes["real"][1], -(n + 1.0))
    m = torch.arange(16, dtype=torch.float64)
    root = (2 * m + 1).sqrt()
    normal = -torch.outer(root, root).tril(-1) - torch.diag(m + 1) + torch.outer(root, root) / 2
    eigenvalues = torch.linalg.eigvals(normal)
    upper = eigenvalues[eigenvalues.imag > 0]
    same(modes["legs"][1], upper[upper.imag.argsort()].to(torch.complex64))


# --- RNN, LSTM, GRU: torch.nn, float64 -----------------------------------------------------------


def torch_twin(layer):
    """The module of torch.nn with the weights of the layer; torch has i, f, c, o in its LSTM."""
    twin = getattr(torch.nn, type(layer).__name__)(D, D, batch_first=True).double()
    order = [0, 1, 3, 2] if isinstance(layer, layers.LSTM) else range(len(layer.biases))
    ours = (layer.x.weight, layer.W.mT, layer.x.bias)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    weights = {
        name: torch.cat([p.split(D)[i] for i in order]) for name, p in zip(names, ours, strict=True)
    }
    twin.load_state_dict({**weights, "bias_hh_l0": torch.zeros(len(layer.biases) * D)})
    return twin


@torch.no_grad()
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_recurrent_layer_is_that_of_torch(name):
    layer = perturbed(layers.make(name, D).double())
    twin, x = torch_twin(layer), torch.randn(2, T, D, dtype=torch.float64)
    h, state = None, None
    for piece in x.split(11, 1):
        o, h = twin(piece, h)
        y, state = layer(piece, state)
        same(y, layer.out(o), 1e-12)
    for part, expected in zip(state.values(), h if name == "lstm" else [h], strict=True):
        same(part, expected[0], 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_without_recurrence_w_is_zero(name):
    whole, cut = layers.make(name, D), layers.make(name, D, recurrent=False)
    x = torch.randn(2, T, D)
    cut.load_state_dict({n: p for n, p in whole.state_dict().items() if n != "W"})
    assert (whole(x)[0] - cut(x)[0]).abs().max() > 1e-2
    whole.W.zero_()
    same(cut(x)[0], whole(x)[0], 0)


# --- first values, options -----------------------------------------------------------------------


def test_mamba_starts_as_published():
    layer = layers.Mamba(64, N=8, rank=4)
    assert torch.equal(layer.A_log, torch.arange(1.0, 9).log().expand(128, 8))
    assert (layer.D == 1).all() and 0.4 < layer.dt_proj.weight.abs().max() <= 0.5
    dt = F.softplus(layer.dt_proj.bias)
    assert dt.min() > 9.9e-4 and dt.max() < 0.101 and 0.003 < dt.median() < 0.03
    assert {n for n, p in layer.named_parameters() if hasattr(p, "no_weight_decay")} == {
        "A_log",
        "D",
        "dt_proj.bias",
    }
    layer = layers.Mamba2(64, P=2)
    assert layer.A_log.min() >= 0 and layer.A_log.max() <= math.log(16) and (layer.D == 1).all()
    assert layers.Mamba(40).dt_proj.in_features == 3  # ceil(40 / 16)


@pytest.mark.parametrize("kind", [layers.S4, layers.H3])
def test_s4_starts_as_published(kind):
    system = kind(512, N=32).system
    dt = system.dt_log.exp()
    assert dt.min() >= 9.9e-4 and dt.max() <= 0.101 and 0.007 < dt.median() < 0.015
    assert abs(system.C.std() - 0.5**0.5) < 0.02 and abs(system.D.std() - 1) < 0.1
    slow = {n for n, p in system.named_parameters() if getattr(p, "max_lr", 1) == 1e-3}
    still = {n for n, p in system.named_parameters() if hasattr(p, "no_weight_decay")}
    assert slow == still == {"dt_log", "A_log", "A_imag"}


def test_h3_starts_as_published():
    layer = layers.H3(512, N=16)
    assert layer.mechanism.options == {"discretization": "bilinear"}
    newest, older = layer.c[:, 0], layer.c[:, 1:]  # a skip ~ N(0, 1) is in the first
    assert 0.9 < newest.std() < 1.15 and 0.24 < older.abs().max() <= 0.25


def test_recurrent_layers_start_as_published():
    layer = layers.LSTM(D)
    assert layer.x.bias.view(4, D).mean(1).tolist() == [0, 1, 0, 0]
    assert (layers.GRU(D).x.bias == 0).all()
    W = layers.RNN(D).W.detach()
    same(W @ W.mT, torch.eye(D))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("s4", {"init": "hippo"}, "init must be one of lin, inv, legs, real, got 'hippo'"),
        ("h3", {"init": "hippo"}, "init must be one of lin, inv, legs, real, got 'hippo'"),
        ("s4", {"discretization": "euler"}, "'zoh' or 'bilinear', got 'euler'"),
        ("h3", {"discretization": "euler"}, "'zoh' or 'bilinear', got 'euler'"),
        ("mamba", {"expand": 1.3}, r"width \* expand must divide evenly"),
        ("mamba2", {"P": 7}, r"width \* expand by P must divide evenly, got 48 by 7"),
        ("mamba2", {"P": 8, "groups": 4}, "heads by groups must divide evenly, got 6 by 4"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        layers.make(kind, D, **options)
