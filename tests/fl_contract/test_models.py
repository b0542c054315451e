"""Each architecture computes what its source says; what all of them promise is in ``tests/contracts``."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from schemas import modalities, schema_of, triples
from torch import Tensor, nn

from fl_contract.errors import SettingError
from fl_contract.models import ModelSettings, build_model
from fl_contract.models.gru import GruLayer
from fl_contract.schema import Schema
from fl_contract.settings import read_toml
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, load_study

PIXELS: dict[str, Any] = {"task": "segmentation", "classes": ["a", "b"]}


def settings_of(**settings: Any) -> Any:
    parsed: ModelSettings = TypeAdapter(ModelSettings).validate_python(
        {key.replace("_", "-"): value for key, value in settings.items()}
    )
    return parsed


def build(schema: Schema, *, outputs: int = 3, seed: int = 1, **settings: Any) -> nn.Module:
    return build_model(settings_of(**settings), schema, num_outputs=outputs, seed=seed)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_regressions_start_at_zero_for_every_patient(kind: str) -> None:
    model = build(schema_of((5,)), kind=kind, outputs=1)

    assert torch.equal(model(torch.rand(4, 5)), torch.zeros(4, 1))


def test_a_perceptron_has_the_layers_that_it_is_asked_for() -> None:
    model = build(schema_of((5,)), kind="mlp", hidden_size=7, num_hidden_layers=3)

    assert [tuple(p.shape) for p in model.parameters()] == [(7, 5), (7,), (7, 7), (7,), (7, 7), (7,), (3, 7), (3,)]


def test_each_modality_has_an_encoder_of_its_own_columns() -> None:
    # Columns 0, 2 and 4 are genomic, 1 clinical (the default), 3 medication.
    features = [{"name": f"x{number}", "minimum": 0.0, "maximum": 1.0} for number in range(5)]
    for number, modality in ((0, "genomic"), (2, "genomic"), (3, "medication"), (4, "genomic")):
        features[number]["modality"] = modality
    schema: Schema = TypeAdapter(Schema).validate_python(
        {"kind": "table", "label": "label", "classes": ["a", "b"], "features": features}
    )
    model = build(schema, kind="multimodal", hidden_size=4, latent_size=2, outputs=1)
    inputs = torch.randn(6, 5, requires_grad=True)

    latent = [encode(inputs[:, each]) for encode, each in zip(model.encoders, model.columns, strict=True)]  # type: ignore[arg-type]
    (of_genomic,) = torch.autograd.grad(latent[0].sum(), inputs, retain_graph=True)

    assert model.columns == [[0, 2, 4], [1], [3]]
    assert of_genomic.any(dim=0).tolist() == [True, False, True, False, True]
    torch.testing.assert_close(model(inputs), model.decoder(torch.cat(latent, dim=1)))  # type: ignore[operator]


def test_a_patient_without_a_modality_counts_as_an_average_one_in_it() -> None:
    raw = read_toml(STUDIES / "heart-disease.toml")
    for number, feature in enumerate(raw["schema"]["features"]):
        feature |= {"modality": "genomic" if number < 3 else "clinical", "missing": "mean"}
    raw["model"], raw["privacy"]["mechanism"] = {"kind": "multimodal"}, "none"
    model = Study.parse(raw, origin="study").build_model()
    average = torch.zeros(1, len(raw["schema"]["features"]))
    model.load_state_dict({**model.state_dict(), "standardise.fill": torch.arange(average.shape[1]) / 10})
    filled, without = average.clone(), average.clone()
    filled[0, :3], without[0, :3] = torch.arange(3) / 10, torch.nan

    assert torch.equal(model(without), model(filled))
    assert not torch.equal(model(without), model(average))


# --- small convolutional networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "layer"), [("none", None), ("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)])
def test_a_network_has_the_normalisation_that_it_is_asked_for(norm: str, layer: type[nn.Module] | None) -> None:
    model = build(schema_of((1, 8, 8)), kind="small-cnn", width=8, norm=norm)

    found = [module for module in model.modules() if isinstance(module, nn.GroupNorm | nn.BatchNorm2d)]

    assert [type(module) for module in found] == ([layer, layer] if layer else [])
    assert [module.num_channels // module.num_groups for module in found if isinstance(module, nn.GroupNorm)] == (
        [4, 4] if norm == "group" else []
    )


def test_a_series_may_end_anywhere() -> None:
    # Five steps of a kernel of 5 see 2 more on either side; the mean over what is left takes any length.
    model = build(schema_of((2, 9)), kind="cnn1d", width=4, num_blocks=2).eval()

    assert model(torch.rand(1, 2, 9)).shape == model(torch.rand(1, 2, 100)).shape == (1, 3)


def test_a_gated_recurrent_unit_computes_what_torchs_does() -> None:
    torch.manual_seed(0)
    layer, reference = GruLayer(3, 5), nn.GRU(3, 5, batch_first=True)
    for own, names in ((layer.from_input, "ih"), (layer.from_state, "hh")):
        own.weight.data = getattr(reference, f"weight_{names}_l0").data
        own.bias.data = getattr(reference, f"bias_{names}_l0").data
    series = torch.randn(2, 7, 3)

    torch.testing.assert_close(layer(series), reference(series)[0])


@pytest.mark.parametrize("sides", [(8, 8), (9, 13), (4, 7), (5, 4, 11)])
def test_a_segmentation_has_the_size_of_its_image(sides: tuple[int, ...]) -> None:
    model = build(schema_of((1, *sides), **PIXELS), kind="unet", width=8, num_levels=2, outputs=2)

    assert model(torch.rand(2, 1, *sides)).shape == (2, 2, *sides)


def test_what_a_u_net_says_of_a_pixel_depends_on_pixels_far_away_and_on_its_own() -> None:
    model = build(schema_of((1, 16, 16), **PIXELS), kind="unet", width=8, num_levels=2, outputs=2).double()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)

    (slope,) = torch.autograd.grad(model(image)[0, 0, 0, 0], image)

    assert float(slope[0, 0, 0, 0].abs()) > 1e-3
    assert float(slope[0, 0, 15, 15].abs()) > 0


# --- published networks ----------------------------------------------------------------------------------------------

PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "densenet121": torchvision.models.DenseNet121_Weights.IMAGENET1K_V1,
    "efficientnet-b0": torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "efficientnet-b1": torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V1,
    "efficientnet-b2": torchvision.models.EfficientNet_B2_Weights.IMAGENET1K_V1,
    "efficientnet-b3": torchvision.models.EfficientNet_B3_Weights.IMAGENET1K_V1,
    "efficientnet-b4": torchvision.models.EfficientNet_B4_Weights.IMAGENET1K_V1,
    "vit": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1,
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_published_network_has_the_published_number_of_parameters(kind: str) -> None:
    stem = {"stem": "large"} if kind.startswith("resnet") else {}
    with torch.device("meta"):
        model = settings_of(kind=kind, **stem).build(schema_of((3, 224, 224)), 1000)

    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[kind].meta["num_params"]


@pytest.mark.parametrize(("stem", "kernel"), [("large", 7), ("small", 3)])
@pytest.mark.parametrize("kind", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_has_torchvisions_names_and_shapes(kind: str, stem: str, kernel: int) -> None:
    with torch.device("meta"):
        reference = torchvision.models.get_model(kind, num_classes=3, norm_layer=group_norm)
        model = settings_of(kind=kind, stem=stem).build(schema_of((3, 32, 32)), 3)

    expected = {**shapes(reference), "conv1.weight": (64, 3, kernel, kernel)}
    assert shapes(model) == expected
    assert list(model.state_dict()) == list(expected)


@pytest.mark.parametrize("kind", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_resnet_with_the_published_stem_computes_what_torchvisions_does(kind: str) -> None:
    reference = torchvision.models.get_model(kind, num_classes=3, norm_layer=group_norm)
    model = build(schema_of((3, 40, 40)), kind=kind, stem="large")
    model.load_state_dict(reference.state_dict())
    images = torch.rand(2, 3, 40, 40)

    torch.testing.assert_close(model(images), reference(images))


def test_a_vision_transformer_of_the_published_size_has_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        reference = torchvision.models.vit_b_16(num_classes=3)
        model = settings_of(kind="vit").build(schema_of((3, 224, 224)), 3)

    assert shapes(model) == shapes(reference)


@pytest.mark.parametrize(
    ("kind", "first"),
    [("densenet121", "features.conv0"), ("efficientnet-b0", "features.0.0"), ("vit", "conv_proj")],
)
def test_a_network_for_grey_images_sums_the_first_weights_over_the_colours(kind: str, first: str) -> None:
    small: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 1} if kind == "vit" else {}
    grey, colour = (build(schema_of((channels, 32, 32)), kind=kind, **small).eval() for channels in (1, 3))
    image = torch.rand(2, 1, 32, 32)
    layers = [model.get_submodule(first) for model in (grey, colour)]

    torch.testing.assert_close(layers[0](image), layers[1](image.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("kind", ["resnet18", "densenet121", "efficientnet-b0"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_published_network_normalises_as_it_is_asked_and_changes_nothing_in_place(kind: str, norm: str) -> None:
    with torch.device("meta"):
        modules = list(settings_of(kind=kind, norm=norm).build(schema_of((1, 32, 32)), 2).modules())

    found = {type(module) for module in modules if isinstance(module, nn.GroupNorm | nn.BatchNorm2d)}
    assert found == {nn.GroupNorm if norm == "group" else nn.BatchNorm2d}
    assert not any(getattr(module, "inplace", False) for module in modules)


# --- knowledge graphs ------------------------------------------------------------------------------------------------


def distances_by_hand(model: nn.Module, triples_B2: Tensor) -> Tensor:
    entities, relations = (model.get_submodule(name).weight for name in ("entities", "relations"))
    rows = [entities[head] + relations[relation] for head, relation in triples_B2.tolist()]  # type: ignore[index]
    return torch.stack([torch.stack([(row - each).norm() for each in entities]) for row in rows])  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_likeliest_tail_is_the_entity_nearest_to_head_plus_relation(dtype: torch.dtype) -> None:
    model = build(triples(entities=30, relations=4), kind="transe", embedding_size=5, outputs=30)
    asked = torch.tensor([[0, 3], [29, 0], [7, 1]])

    outputs = model(asked.to(dtype))

    torch.testing.assert_close(outputs, -distances_by_hand(model, asked), rtol=1e-4, atol=1e-4)


def test_a_relation_starts_one_long() -> None:
    model = build(triples(entities=3, relations=9), kind="transe", outputs=3)

    torch.testing.assert_close(model.get_submodule("relations").weight.norm(dim=1), torch.ones(9))  # type: ignore[operator]


@pytest.mark.slow
def test_fifty_thousand_entities_take_a_step_without_a_tensor_of_all_differences() -> None:
    # All differences of 64 triples from 50,000 entities in 50 numbers would take 640 MB, outputs take 13 MB.
    model = build(triples(entities=2, relations=2), kind="transe", outputs=50_000)
    asked = torch.stack([torch.arange(64), torch.arange(64) % 2], dim=1)

    with torch.profiler.profile(profile_memory=True) as profile:
        nn.functional.cross_entropy(model(asked), torch.arange(64)).backward()

    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 100e6
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_head_that_is_its_own_tail_has_a_finite_gradient() -> None:
    model = build(triples(entities=3, relations=1), kind="transe", outputs=3)
    with torch.no_grad():
        model.get_submodule("relations").weight.zero_()  # type: ignore[operator]

    model(torch.tensor([[1, 0]])).sum().backward()

    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# --- code of one's own -----------------------------------------------------------------------------------------------


def test_ones_own_model_gets_schema_outputs_and_options() -> None:
    model = build(schema_of((2, 3)), kind="python", path="own_models:build", options={"hidden_size": 5, "slope": 0.5})

    assert [tuple(p.shape) for p in model.parameters()] == [(5, 6), (5,), (3, 5), (3,)]
    assert [module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)] == [0.5]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("no_such_package.model:build", "cannot be imported .*; install the package"),
        ("own_models:no_such_function", "cannot be imported .*; install the package"),
        ("own_models:build_a_text", "gave a str; expected a torch.nn.Module"),
    ],
)
def test_ones_own_model_that_is_not_there_or_no_model_is_named(path: str, rule: str) -> None:
    with pytest.raises(SettingError, match=f"model.path='{path}'; {rule}"):
        build(schema_of((5,)), kind="python", path=path)


@pytest.mark.parametrize(
    "path", ["own_models", "own_models.build", "own_models:", ":build", "a b:c", "../m:b", "m:b()"]
)
def test_a_path_is_a_module_and_a_function(path: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        settings_of(kind="python", path=path)


# --- data that a model is not for ------------------------------------------------------------------------------------

IMAGE, VOLUME = schema_of((1, 16, 16)), schema_of((1, 16, 16, 16))


@pytest.mark.parametrize(
    ("settings", "schema", "rule"),
    [
        ({"kind": "linear"}, schema_of((5,)), "task='classification'; this model is for .'regression'."),
        ({"kind": "unet"}, IMAGE, "task='classification'; this model is for .'segmentation'."),
        ({"kind": "small-cnn"}, schema_of((1, 8, 8), **PIXELS), "task='segmentation'; this model is for"),
        ({"kind": "gru"}, IMAGE, "kind='image'; this model is for .'series'."),
        ({"kind": "transe"}, schema_of((5,)), "kind='table'; this model is for .'triples'."),
        *(
            ({"kind": kind}, VOLUME, "schema.depth=16; this model is for plane images")
            for kind in ("resnet18", "densenet121", "efficientnet-b0", "vit")
        ),
        ({"kind": "densenet121"}, schema_of((1, 40, 31)), "images of 40 x 31; expected sides of 32 or more"),
        ({"kind": "vit", "patch_size": 5}, IMAGE, "patch-size=5 and images of 16 x 16; expected square images"),
        ({"kind": "vit"}, schema_of((1, 16, 32)), "patch-size=16 and images of 16 x 32; expected square images"),
        ({"kind": "vit", "num_heads": 5}, IMAGE, "num-heads=5 and hidden-size=768; expected a hidden size that"),
        ({"kind": "unet", "num_levels": 4}, schema_of((1, 16, 15), **PIXELS), "16 x 15; expected sides of 16 or more"),
        ({"kind": "unet"}, schema_of((1, 7, 8, 8), **PIXELS), "7 x 8 x 8; expected sides of 8 or more"),
        ({"kind": "cnn1d"}, schema_of((1, 7)), "num-blocks=3 and schema.length=7; expected a series of 8 steps"),
        ({"kind": "multimodal"}, schema_of((5,)), "features of .'clinical'. only; expected two modalities"),
    ],
)
def test_a_model_refuses_data_that_it_is_not_for(settings: dict[str, Any], schema: Schema, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        settings_of(**settings).check_schema(schema)


def test_the_least_that_a_model_takes_is_taken() -> None:
    for settings, schema in (
        ({"kind": "densenet121"}, schema_of((1, 32, 32))),
        ({"kind": "unet", "num_levels": 4}, schema_of((1, 16, 16), **PIXELS)),
        ({"kind": "cnn1d"}, schema_of((1, 8))),
        ({"kind": "multimodal"}, modalities(genomic=1, clinical=1)),
    ):
        settings_of(**settings).check_schema(schema)


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.toml")))
def test_every_shipped_study_builds_its_model(name: str) -> None:
    study = load_study(name)
    outputs, shape = study.num_outputs, study.data_schema.input_shape

    model = study.build_model()

    assert model(torch.zeros(2, *shape)).shape == (2, outputs)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in model.state_dict().values())
