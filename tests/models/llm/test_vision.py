"""The frozen CLIP tower, and early fusion: visual rows in the first layers and nowhere else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_bases import IDS, adapters, base_model, direct
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from algorithms import ParameterError
from models.llm.adapter import (
    AdapterConfig,
    adapter_parameters,
    adapter_root,
    gate_statistics,
    image_context,
    insert_adapter,
    remove_adapter,
)
from models.llm.prompt_attention import IMAGE_ROWS
from models.llm.vision import (
    VISION_SIZES,
    VisionTower,
    VisualAttention,
    VisualProjection,
    open_picture,
    vision_tower,
)

WIDTH = 12
FEATURES = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3))


def seeing(family: str = "llama", *, opened: bool = True, **values: Any) -> Any:
    """Prompts in the topmost two layers of three, images in the first."""
    base = base_model(family)
    insert_adapter(base, AdapterConfig.make(**{
        "layers": 2, "prompt": 5, "visual": "early", "image_width": WIDTH, "image_hidden": 16,
        "visual_rows": 4, **values}))
    if opened:
        torch.manual_seed(2)
        for name, values_ in adapter_parameters(base).items():
            if name.endswith("adapter.gate"):
                nn.init.normal_(values_)
    return base


def logits(base: Any, images: Tensor | None = None, ids: Tensor = IDS, **options: Any) -> Tensor:
    given = {} if images is None else {IMAGE_ROWS: adapter_root(base)(images)}
    out: Tensor = base(input_ids=ids, **given, **options).logits
    return out


def eyes(base: nn.Module) -> list[Any]:
    return [module for module in base.modules() if isinstance(module, VisualAttention)]


@pytest.mark.parametrize("family", ["llama", "llama-mha", "llama-bias", "qwen3", "olmo2"])
@pytest.mark.parametrize("gate", ["head", "scalar"])
def test_the_first_layer_attends_to_each_images_rows(family: str, gate: str) -> None:
    base = seeing(family, gate=gate)
    first = base.model.layers[0].self_attn
    seen: list[tuple[Tensor, Tensor]] = []
    first.register_forward_hook(
        lambda module, _, given, out: seen.append((given["hidden_states"], out[0])),
        with_kwargs=True)
    with torch.no_grad():
        logits(base, FEATURES)
    rows = adapter_root(base)(FEATURES)
    assert rows.shape == (2, 4, 48) and not torch.allclose(rows[0], rows[1])
    (x, mixed), = seen
    parts = {name: getattr(first, name, None) for name in (
        "head_dim", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
    for sequence in range(2):
        adapter = SimpleNamespace(prompt=rows[sequence], strength=first.adapter.strength)
        one = slice(sequence, sequence + 1)
        wanted = direct(SimpleNamespace(adapter=adapter, **parts), x[one].double())
        torch.testing.assert_close(mixed[one].double(), wanted, rtol=1e-5, atol=1e-5)
        adapter.strength = torch.zeros(1)
        blind = direct(SimpleNamespace(adapter=adapter, **parts), x[one].double())
        assert (blind - wanted).abs().max() > 1e-3


def test_starts_as_the_base_with_and_without_images() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        expected = base_model().to(dtype)(input_ids=IDS).logits
        base = base_model().to(dtype)
        insert_adapter(base, AdapterConfig(layers=2, prompt=5, visual="early", image_width=WIDTH))
        assert torch.equal(logits(base), expected)
        assert torch.equal(logits(base, FEATURES), expected)
        assert {values.dtype for values in adapter_parameters(base).values()} == {torch.float32}


def test_the_gate_learns_first_and_the_projection_next() -> None:
    base = seeing(opened=False)
    projection, (eye,) = adapter_root(base).projection, eyes(base)
    assert isinstance(projection, VisualProjection)
    logits(base, FEATURES).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    assert eye.gate.grad.all()
    for name, values in projection.named_parameters():
        assert values.grad is not None and not values.grad.any(), name
    torch.optim.SGD(adapter_parameters(base).values(), lr=0.1).step()
    logits(base, FEATURES).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    for name, values in projection.named_parameters():
        assert values.grad is not None and values.grad.any(), name


def test_images_never_reach_static_prompts() -> None:
    base = seeing()
    rows = adapter_root(base)(FEATURES)
    query = torch.randn(2, 4, 7, 8)
    for layer, adapter in zip(base.model.layers[1:], adapters(base), strict=True):
        with_image = adapter(layer.self_attn, query, rows)
        assert torch.equal(with_image, adapter(layer.self_attn, query, None))
    assert eyes(base)[0](base.model.layers[0].self_attn, query, None) is None


def test_without_an_image_the_visual_part_does_not_run() -> None:
    base = seeing()
    with FlopCounterMode(display=False) as text:
        expected = logits(base)
    for values in (*adapter_root(base).parameters(), eyes(base)[0].gate):
        nn.init.constant_(values, torch.nan)
    assert torch.equal(logits(base), expected)
    with FlopCounterMode(display=False) as both:
        logits(base, FEATURES)
    assert 0 < text.get_total_flops() < both.get_total_flops()


def test_several_first_layers_may_see() -> None:
    base = seeing(layers=1, visual_layers=2)
    assert [hasattr(layer.self_attn, "adapter") for layer in base.model.layers] == [True] * 3
    first, second = eyes(base)
    assert base.model.layers[1].self_attn.adapter is second
    before = logits(base, FEATURES)
    nn.init.zeros_(second.gate)
    assert not torch.allclose(logits(base, FEATURES), before)
    assert [found.layer for found in gate_statistics(base)] == [0, 1, 2]
    assert gate_statistics(base)[0].largest == pytest.approx(first.gate.tanh().abs().max().item())


@pytest.mark.parametrize(("layers", "seeing_layers", "free"), [(2, 2, 1), (3, 1, 0), (1, 3, 2)])
def test_no_layer_sees_and_has_a_prompt(layers: int, seeing_layers: int, free: int) -> None:
    base = base_model()
    with pytest.raises(ParameterError) as caught:
        insert_adapter(base, AdapterConfig(
            layers=layers, prompt=5, visual="early", image_width=WIDTH,
            visual_layers=seeing_layers))
    assert str(caught.value) == (
        f"visual_layers={seeing_layers}: must be at most {free}: the topmost {layers} of 3 layers "
        f"have prompts, and no layer has both; nearest legal value: {free}")
    assert not hasattr(base, "adapter") and all(p.requires_grad for p in base.parameters())


def test_generation_sees_the_image_with_a_cache_as_without() -> None:
    base = seeing()
    options = {"max_new_tokens": 6, "do_sample": False}
    blind = base.generate(IDS, **options)
    with image_context(base, FEATURES):
        cached = base.generate(IDS, use_cache=True, **options)
        plain = base.generate(IDS, use_cache=False, **options)
        scored = base(input_ids=cached).logits
        beams = base.generate(IDS, use_cache=True, num_beams=2, **options)
    assert torch.equal(cached, plain) and beams.shape[0] == 2
    assert torch.equal(scored[:, 6:-1].argmax(-1), cached[:, 7:])
    assert not torch.equal(cached, blind)
    assert torch.equal(base.generate(IDS, **options), blind)


def test_removal_leaves_the_base() -> None:
    base, plain = seeing(unlock_norm=True, unlock_scale=True), base_model()
    remove_adapter(base)
    assert torch.equal(logits(base), plain(input_ids=IDS).logits)
    assert [*dict(base.named_parameters())] == [*dict(plain.named_parameters())]
    assert all(values.requires_grad for values in base.parameters())


def test_features_of_another_shape_are_refused() -> None:
    base = seeing()
    for shape in ((2, WIDTH), (2, 5, WIDTH + 1)):
        with pytest.raises(ParameterError, match=r"images=.*: must be \(batch, tokens, 12\)"):
            adapter_root(base)(torch.zeros(shape))
    with pytest.raises(ParameterError, match="must divide the batch of 2 sequences"):
        logits(base, FEATURES.repeat(2, 1, 1)[:3])


def tower(scales: tuple[int, ...] = (1, 3)) -> VisionTower:
    torch.manual_seed(0)
    return VisionTower(CLIPVisionModel(CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        image_size=12, patch_size=6)), scales)


def test_the_tower_puts_scales_side_by_side_and_never_learns() -> None:
    made = tower().train()
    pixels = torch.randn(2, 3, 12, 12)
    features = made(pixels)
    states = made.encoder(pixels, output_hidden_states=True).hidden_states
    assert features.shape == (2, 1 + 4, made.features) == (2, 5, 32)
    assert torch.equal(features, torch.cat([states[1], states[3]], -1))
    assert torch.equal(states[3], made.encoder(pixels).last_hidden_state)
    assert not features.requires_grad and not any(p.requires_grad for p in made.parameters())
    assert not any(module.training for module in made.modules())


def test_pixels_are_rgb_and_normalised_as_clips() -> None:
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    pixels = tower().pixels([red, red.convert("P"), Image.new("L", (5, 9), 255)])
    assert pixels.shape == (3, 3, 12, 12) and pixels.dtype == torch.float32
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # of CLIP's training data, R G B
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    for picture, colour in zip(pixels, ([1, 0, 0], [1, 0, 0], [1, 1, 1]), strict=True):
        wanted = ((torch.tensor(colour) - mean) / deviation)[:, None, None].expand(3, 12, 12)
        torch.testing.assert_close(picture, wanted, rtol=1e-4, atol=1e-4)


def test_a_crop_keeps_the_middle() -> None:
    wide = Image.new("RGB", (36, 12), (0, 0, 0))
    wide.paste((255, 255, 255), (12, 0, 24, 12))
    pixels = tower().pixels([wide])
    # Bicubic resizing does nothing at this size, so that the middle square is all white.
    assert torch.equal(pixels, tower().pixels([Image.new("RGB", (12, 12), (255, 255, 255))]))


def test_late_fusion_reads_the_global_token_of_every_scale() -> None:
    made, picture = tower(), Image.new("RGB", (12, 12), (9, 200, 30))
    tokens, single = made.see([picture], "early"), made.see([picture], "late")
    assert tokens.shape == (1, 5, 32) and torch.equal(single, tokens[:, 0])
    base = base_model()
    insert_adapter(base, AdapterConfig(layers=3, prompt=5, visual="late", image_width=32))
    assert adapter_root(base)(single).shape == (1, 1, 48)


def test_loads_from_a_directory(tmp_path: Path) -> None:
    made = tower()
    made.encoder.save_pretrained(tmp_path)
    picture = Image.new("RGB", (30, 20), (10, 120, 230))
    expected = made.see([picture], "early")
    again = VisionTower.from_directory(tmp_path, (1, 3))
    assert torch.equal(again.see([picture], "early"), expected)
    made.processor.image_mean = [0.0, 0.0, 0.0]
    made.processor.save_pretrained(tmp_path)
    other = VisionTower.from_directory(tmp_path, (1, 3))
    assert not torch.allclose(other.see([picture], "early"), expected)
    assert torch.equal(other.see([picture], "early"), made.see([picture], "early"))
    with pytest.raises(ParameterError, match=r"must be a local directory with config\.json"):
        VisionTower.from_directory(tmp_path / "none", (1,))


def test_folders_without_a_whole_tower_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    base_model().save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match=r"json: model_type='llama': must be one of clip"):
        VisionTower.from_directory(tmp_path, (1,))
    tower().encoder.save_pretrained(tmp_path)
    whole = load_file(weights)
    part, fitting = "encoder.layers.1.mlp.fc1.weight", {"format": "pt"}
    name = next(name for name in whole if name.endswith(part))
    save_file({key: values for key, values in whole.items() if key != name}, weights, fitting)
    with pytest.raises(ParameterError, match=f"has no weights .*{part}"):
        VisionTower.from_directory(tmp_path, (1,))
    save_file(whole | {name: torch.zeros(7, 16)}, weights, fitting)
    with pytest.raises(ParameterError, match=rf"{part} of shape \(7, 16\) where its config.json "
                       r"needs \(32, 16\)"):
        VisionTower.from_directory(tmp_path, (1,))
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:2000]), weights.unlink):
        damage()
        with pytest.raises(ParameterError, match=r"path=.*cannot be loaded \(") as caught:
            VisionTower.from_directory(tmp_path, (1,))
        assert "\n" not in str(caught.value)


def test_the_tower_of_a_whole_clip_model(tmp_path: Path) -> None:
    vision = tower().encoder.config
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict()))
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 12, 12)
    states = whole.vision_model(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(VisionTower.from_directory(tmp_path, (3,))(pixels), states[3])


@pytest.mark.parametrize("size", VISION_SIZES)
def test_sizes_have_their_shapes(size: str) -> None:
    shape = VISION_SIZES[size]
    with torch.device("meta"):
        made = vision_tower(size)
    features = made(torch.zeros(1, 3, shape.image, shape.image, device="meta"))
    assert features.shape == (1, shape.tokens, shape.features) and made.features == shape.features
    if size == "full":  # ViT-L/14 of CLIP has 303,179,776 parameters
        assert features.shape == (1, 257, 1024)
        assert sum(values.numel() for values in made.parameters()) == 303_179_776


def test_towers_depend_on_their_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (vision_tower("tiny", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_is_no_picture_or_scale_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no picture")
    for picture, words in ((7, "must be a Pillow image or the path of an image file"),
                           (str(tmp_path / "none.png"), "must be a file that is there"),
                           (wrong, "must be a readable image")):
        with pytest.raises(ParameterError, match=words):
            open_picture(picture)  # type: ignore[arg-type]
    good = tmp_path / "good.png"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(good)
    assert open_picture(good).getpixel((0, 0)) == (1, 2, 3)
    for scales in ((0, 3), (4,), ()):
        with pytest.raises(ParameterError, match=r"scales=.*must be numbers from 1 to 3"):
            tower(scales)
    with pytest.raises(ParameterError, match="size='ful': must be one of tiny, small, full; "
                       "nearest legal value: full"):
        vision_tower("ful")
