"""Weights of other projects: ONNX exports in all variants, and the command that imports them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from IS_Net import checkpoint, import_weights, onnx_weights  # noqa: E402
from IS_Net.checkpoint import load_isnet, read_weights, save_weights  # noqa: E402
from IS_Net.errors import CheckpointError, MissingExtraError  # noqa: E402
from IS_Net.models import ISNetDIS  # noqa: E402
from IS_Net.runtime.torch_runtime import fold_batchnorm  # noqa: E402
from tests.thin_networks import Thin  # noqa: E402


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> Thin:
    """Return a small network with random statistics, in eval mode, and make the readers use its class for IS-Net."""
    for module in (onnx_weights, checkpoint):
        monkeypatch.setattr(module, "ISNetDIS", Thin)
    return randomize(Thin(3))


def randomize(model: ISNetDIS) -> ISNetDIS:
    """Give BatchNorms values as after a training; return the network in eval mode."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def running_order(model: nn.Module, in_ch: int) -> list[str]:
    order: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        model(torch.rand(1, in_ch, 64, 64))
    return order


def write_onnx(
    path: Path,
    model: ISNetDIS,
    *,
    fold: bool = True,
    half: bool = False,
    names: str = "numbered",
    constants: bool = False,
    casts: bool = False,
    sides: int = 6,
    epsilon: float = 1e-5,
    size: list | None = None,
    change: Callable[[list], None] = lambda nodes: None,
) -> Path:
    """Write the nodes of an export that hold weights, chained; the shapes in between are not those of a network."""
    source = fold_batchnorm(model) if fold else model
    nodes, initializers = [], []

    def constant(name: str, tensor: Tensor) -> str:
        kept = name if names == "kept" else f"onnx::Conv_{len(nodes) + len(initializers)}"
        array = tensor.detach().numpy().astype(np.float16 if half else np.float32)
        if constants:
            nodes.append(helper.make_node("Constant", [], [kept], value=numpy_helper.from_array(array)))
        else:
            initializers.append(numpy_helper.from_array(array, kept))
        if not casts:
            return kept
        nodes.append(helper.make_node("Cast", [kept], [f"{kept}_cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Identity", [f"{kept}_cast"], [f"{kept}_copy"]))
        return f"{kept}_copy"

    x = "input"
    for name in running_order(source, model.in_ch)[: 113 + sides]:
        conv = source.get_submodule(name)
        bias = [] if conv.bias is None else [constant(f"{name}.bias", conv.bias)]
        nodes.append(helper.make_node("Conv", [x, constant(f"{name}.weight", conv.weight), *bias], [name], f"/{name}"))
        x = name
        if casts:
            nodes.append(helper.make_node("Cast", [x], [f"{x}_cast"], to=TensorProto.FLOAT))
            x = f"{x}_cast"
        if name.endswith("conv_s1"):
            stem = name.removesuffix(".conv_s1")
            if not fold:
                norm = source.get_submodule(f"{stem}.bn_s1")
                values = {key: getattr(norm, key) for key in ("weight", "bias", "running_mean", "running_var")}
                inputs = [constant(f"{stem}.bn_s1.{key}", value) for key, value in values.items()]
                nodes.append(helper.make_node("BatchNormalization", [x, *inputs], [f"{stem}.bn_s1"], epsilon=epsilon))
                x = f"{stem}.bn_s1"
            nodes.append(helper.make_node("Relu", [x], [f"{stem}.relu_s1"]))
            x = f"{stem}.relu_s1"
    change(nodes)
    shape = [1, model.in_ch, *(size or ["height", "width"])]
    graph_input = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    graph_output = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "isnet", [graph_input], [graph_output], initializers)), path)
    return path


@torch.no_grad()
def assert_computes_the_same(found: ISNetDIS, wanted: ISNetDIS, tolerance: float = 1e-5, sides: int = 6) -> None:
    x = torch.rand(2, wanted.in_ch, 96, 64)
    for ours, theirs in zip(found.eval()(x)[0][:sides], wanted(x)[0][:sides], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# --- variants of exports ---


FORMS = {"initializers": {}, "constants": {"constants": True}, "casts": {"casts": True}}


@pytest.mark.parametrize(("half", "names"), [(True, "numbered"), (False, "kept")], ids=["half", "full-named"])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "batchnorm"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_exports_load(tmp_path: Path, thin: Thin, fold: bool, half: bool, names: str, form: dict, caplog):
    path = write_onnx(tmp_path / "isnet.onnx", thin, fold=fold, half=half, names=names, **form)
    model, metadata = load_isnet(path)
    assert metadata == {"in_ch": 3}
    assert_computes_the_same(model, thin, 5e-3 if half else 1e-5)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in model.state_dict().values())
    assert not caplog.messages


def test_batchnorms_are_restored(tmp_path: Path, thin: Thin):
    weights, _ = read_weights(write_onnx(tmp_path / "isnet.onnx", thin, fold=False))
    for name, tensor in thin.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)


def test_folded_batchnorms_become_gains(tmp_path: Path, thin: Thin):
    model, _ = load_isnet(write_onnx(tmp_path / "isnet.onnx", thin))
    norm, x = model.stage3d.rebnconv2d.bn_s1.eval(), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(norm(x), x * norm.weight.view(-1, 1, 1), rtol=1e-6, atol=1e-7)
    assert not norm.running_mean.any() and not norm.bias.any()


def test_unfolded_weights_have_the_magnitude_of_initialized_ones(tmp_path: Path, thin: Thin):
    for module in thin.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 1e-2, 1e2)  # folded, channels differ by up to a hundredfold
    model, _ = load_isnet(write_onnx(tmp_path / "isnet.onnx", thin))
    for name, module in model.named_modules():
        if name.endswith("conv_s1"):
            size = module.weight.square().mean((1, 2, 3)).sqrt() / (2 / module.weight[0].numel()) ** 0.5
            assert size.max() < 1 + 1e-5 and size.median() > 1 - 1e-5, name
    assert_computes_the_same(model, thin, 1e-4)


def test_a_layer_of_zeros_has_no_gain():
    gain = onnx_weights.unfold(torch.zeros(3, 2, 3, 3))
    assert torch.equal(gain, torch.ones(3))
    mostly = torch.zeros(4, 2, 3, 3)
    mostly[0] = 0.5
    gain = onnx_weights.unfold(mostly)
    assert (gain > 0).all() and gain.isfinite().all()


def test_another_epsilon(tmp_path: Path, thin: Thin):
    path = write_onnx(tmp_path / "isnet.onnx", thin, fold=False, epsilon=0.1)
    for module in thin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    assert_computes_the_same(load_isnet(path)[0], thin)


@pytest.mark.parametrize(("in_ch", "size"), [(3, [1024, 768]), (4, None), (5, [512, 512])])
def test_channels_and_a_fixed_size_are_in_the_metadata(tmp_path: Path, thin: Thin, in_ch: int, size: list | None):
    model, metadata = load_isnet(write_onnx(tmp_path / "isnet.onnx", Thin(in_ch).eval(), size=size))
    assert model.in_ch == in_ch
    assert metadata == {"in_ch": in_ch} | ({"input_size": size} if size else {})


def test_finest_side_output_alone(tmp_path: Path, thin: Thin, caplog: pytest.LogCaptureFixture):
    model, _ = load_isnet(write_onnx(tmp_path / "isnet.onnx", thin, sides=1))
    assert_computes_the_same(model, thin, sides=1)
    assert not model.side2.weight.any() and not model.side6.bias.any()
    assert (
        "isnet.onnx has no side outputs side2, side3, side4, side5, side6; their weights are set to zero" in caplog.text
    )


@pytest.mark.slow
def test_the_real_network(tmp_path: Path):
    model = randomize(ISNetDIS(3))
    found, _ = load_isnet(write_onnx(tmp_path / "isnet.onnx", model, half=True))
    assert_computes_the_same(found, model, 5e-3)


# --- what is refused ---


def quantize_one(nodes: list) -> None:
    nodes.append(helper.make_node("DequantizeLinear", ["a", "b"], ["c"]))


def compute_a_weight(nodes: list) -> None:
    next(node for node in nodes if node.op_type == "Conv").input[1] = "computed"


def swap_two(nodes: list) -> None:
    first, second = (index for index, node in enumerate(nodes) if node.op_type == "Conv" and node.output[0] in SWAPPED)
    nodes[first].input[1], nodes[second].input[1] = nodes[second].input[1], nodes[first].input[1]


SWAPPED = ("stage1.rebnconvin.conv_s1", "stage1.rebnconv1.conv_s1")


def drop_convolutions(nodes: list) -> None:
    nodes[:] = [node for node in nodes if node.op_type != "Conv"]


def normalize_a_side(nodes: list) -> None:
    constants = list(nodes[0].input[1:2]) * 4
    nodes.append(helper.make_node("BatchNormalization", ["side3", *constants], ["x"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantize_one, "is quantized; expected float16 or float32"),
        (compute_a_weight, "the weights computed are computed, not stored; export the network in eval mode"),
        (swap_two, r"/stage1.rebnconvin.conv_s1 is \(2, 5, 3, 3\), IS-Net's stage1.rebnconvin.conv_s1 \(5, 5, 3, 3\)"),
        (drop_convolutions, "another network: it has 0 convolutions"),
        (
            lambda nodes: nodes.pop(0),
            r"another network: convolution /stage1.rebnconv1.conv_s1 is .*, IS-Net's stage1.rebnconvin",
        ),
        (normalize_a_side, "another network: it normalizes the output of side3"),
    ],
)
def test_other_networks(tmp_path: Path, thin: Thin, change: Callable, message: str):
    path = write_onnx(tmp_path / "odd.onnx", thin, change=change)
    with pytest.raises(CheckpointError, match=rf"odd\.onnx: .*{message}"):
        read_weights(path)


def drop_the_inputs_of_one(nodes: list) -> None:
    del next(node for node in nodes if node.op_type == "Conv" and node.output[0] == "side2").input[1:]


def add_a_convolution(nodes: list) -> None:
    nodes.append(helper.make_node("Conv", ["side6", nodes[-1].input[1]], ["more"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_the_inputs_of_one, r"cannot be read as IS-Net; copy it again \(IndexError: "),
        (add_a_convolution, r"another network: it has 120 convolutions, IS-Net 119 \(114 with"),
    ],
)
def test_nodes_that_do_not_fit(tmp_path: Path, thin: Thin, change: Callable, message: str):
    path = write_onnx(tmp_path / "odd.onnx", thin, change=change)
    with pytest.raises(CheckpointError, match=rf"odd\.onnx: .*{message}"):
        read_weights(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 3, 5), r"is another network: it has 1 convolutions, the first \(8, 3, 5\)"),
        ((8, 1, 3, 3), "is another network: expected 3, 4 or 5 input channels, found 1"),
        ((8, 3, 3, 3), r"is another network: it has 1 convolutions, IS-Net 119 \(114 with"),
    ],
)
def test_a_network_of_one_convolution(tmp_path: Path, thin: Thin, shape: tuple[int, ...], message: str):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in "xy")
    graph = helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(np.ones(shape, np.float32), "w")])
    onnx.save(helper.make_model(graph), tmp_path / "odd.onnx")
    with pytest.raises(CheckpointError, match=rf"odd\.onnx: {message}"):
        read_weights(tmp_path / "odd.onnx")


def test_weights_of_text(tmp_path: Path, thin: Thin):
    def name_the_first(nodes: list) -> None:
        text = helper.make_tensor("text", TensorProto.STRING, [1], [b"x"])
        nodes.insert(0, helper.make_node("Constant", [], ["text"], value=text))
        next(node for node in nodes if node.op_type == "Conv").input[1] = "text"

    path = write_onnx(tmp_path / "odd.onnx", thin, change=name_the_first)
    with pytest.raises(CheckpointError, match=r"odd\.onnx: cannot be read as IS-Net; copy it again \(\w+: "):
        read_weights(path)


def test_a_file_that_is_no_onnx(tmp_path: Path, thin: Thin):
    (tmp_path / "page.onnx").write_text("<html>404: Not Found</html>")
    with pytest.raises(CheckpointError, match=r"page\.onnx: cannot be read as ONNX; copy it again \(.+\)"):
        read_weights(tmp_path / "page.onnx")


def test_too_few_convolutions(tmp_path: Path, thin: Thin):
    path = write_onnx(tmp_path / "odd.onnx", thin, sides=-50)
    message = r"it has 63 convolutions, IS-Net 119 \(114 with the finest side output alone\)"
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


def test_names_that_the_exporter_kept_must_agree(tmp_path: Path, thin: Thin):
    def swap_sides(nodes: list) -> None:  # of one shape: only their names tell
        one, two = (next(node for node in nodes if node.output[0] == name) for name in ("side1", "side2"))
        one.input[1], two.input[1] = two.input[1], one.input[1]

    path = write_onnx(tmp_path / "odd.onnx", thin, names="kept", change=swap_sides)
    with pytest.raises(CheckpointError, match=r"has side2\.weight where IS-Net has side1\.weight"):
        read_weights(path)


def test_equal_weights_may_be_stored_once(tmp_path: Path, thin: Thin):
    def share(nodes: list) -> None:
        next(node for node in nodes if node.output[0] == "side6").input[1] = "side5.weight"
        del nodes[[node.output[0] for node in nodes].index("side6.weight")]

    nn.init.zeros_(thin.side5.weight)
    nn.init.zeros_(thin.side6.weight)
    path = write_onnx(tmp_path / "isnet.onnx", thin, names="kept", constants=True, change=share)
    assert_computes_the_same(load_isnet(path)[0], thin)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_damaged_files(tmp_path: Path, thin: Thin, share: float):
    whole = write_onnx(tmp_path / "isnet.onnx", thin).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.onnx: "):
        read_weights(tmp_path / "cut.onnx")


def test_without_the_onnx_package(tmp_path: Path, thin: Thin, monkeypatch: pytest.MonkeyPatch):
    path = write_onnx(tmp_path / "isnet.onnx", thin)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        MissingExtraError, match=r"the package 'onnx' is not installed.*pip install 'dis-sam\[import\]'"
    ):
        read_weights(path)


# --- the command ---


@pytest.mark.parametrize("kind", ["onnx", "pth", "safetensors"])
@pytest.mark.parametrize("int8", [False, True])
def test_command(tmp_path: Path, thin: Thin, capsys: pytest.CaptureFixture, kind: str, int8: bool):
    source, out = tmp_path / f"isnet.{kind}", tmp_path / "new" / "isnet.safetensors"
    metadata = {"in_ch": 3}
    if kind == "onnx":
        write_onnx(source, thin, size=[64, 96])
        metadata["input_size"] = [64, 96]
    elif kind == "pth":
        torch.save(thin.state_dict(), source)
    else:
        save_weights(source, thin, {"note": "n"})
        metadata["note"] = "n"
    assert import_weights.main([str(source), str(out), *(["--int8"] if int8 else [])]) == 0
    model, found = load_isnet(out)
    assert found == metadata
    assert_computes_the_same(model, thin, 0.1 if int8 else 1e-5)
    said = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in thin.parameters())
    size = f"{out.stat().st_size / 1e6:.1f} MB{', int8' if int8 else ''}"
    assert said == f"{out}: IS-Net with 3 input channels, {count:,} parameters, {size}\n"


def test_the_size_to_predict_at_can_be_set(tmp_path: Path, thin: Thin, capsys: pytest.CaptureFixture):
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_weights(source, thin, {"input_size": [768, 768]})
    assert import_weights.main([str(source), str(out), "--input-size", "1024"]) == 0
    assert load_isnet(out)[1]["input_size"] == [1024, 1024]
    with pytest.raises(SystemExit) as stop:
        import_weights.main([str(source), str(out), "--input-size", "64"])
    assert stop.value.code == 2 and "--input-size: expected 128 to 16384, found 64" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere.onnx", "text.onnx", "text.pth", "text.safetensors"])
def test_command_with_a_bad_source(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    for kind in ("onnx", "pth", "safetensors"):
        (tmp_path / f"text.{kind}").write_text("404: Not Found")
    assert import_weights.main([str(tmp_path / name), str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {tmp_path / name}: ")
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_command_with_a_bad_target(tmp_path: Path, thin: Thin, capsys: pytest.CaptureFixture):
    save_weights(tmp_path / "a.safetensors", thin, {})
    with pytest.raises(SystemExit) as stop:
        import_weights.main([str(tmp_path / "a.safetensors"), str(tmp_path / "out.pth")])
    assert stop.value.code == 2
    assert "ends in .safetensors" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert import_weights.main([str(tmp_path / "a.safetensors"), str(tmp_path / "file" / "out.safetensors")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_ema_of_a_training_state_is_imported(tmp_path: Path, thin: Thin):
    trained, ema = randomize(Thin(4)), Thin(4)
    state = {"model": trained.state_dict(), "ema_model": ema.state_dict(), "metadata": {"input_size": [128, 128]}}
    checkpoint.save_state(tmp_path / "last.pt", state)
    assert import_weights.main([str(tmp_path / "last.pt"), str(tmp_path / "out.safetensors")]) == 0
    weights, metadata = read_weights(tmp_path / "out.safetensors")
    assert metadata == {"input_size": [128, 128], "in_ch": 4}
    assert all(torch.equal(weights[name], tensor) for name, tensor in ema.state_dict().items())


def test_help_needs_no_heavy_package():
    code = (
        "import sys\nfrom IS_Net import import_weights\ntry: import_weights.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'cv2', 'PIL'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: dis-sam import-weights") and shown.endswith("\n[]\n")
