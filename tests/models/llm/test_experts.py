"""Expert context: what experts say is put next to the question, and nothing else changes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_bases import base_model
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast

from algorithms import ParameterError
from models.llm.adapter import AdapterConfig, adapter_parameters, insert_adapter
from models.llm.experts import DESCRIBE, CaptionExpert, ExpertConfig, ExpertContext, RecordedExpert
from models.llm.instructions import Instruction, instruction_batches, tokenise_instructions
from models.llm.joint import JointConfig, JointTraining
from models.llm.llama import Llama
from models.llm.vision import Picture, VisionTower

RED, BLUE = (Image.new("RGB", (12, 12), colour) for colour in ((255, 0, 0), (0, 0, 255)))


def says(text: Any) -> Any:
    """An expert that always says the same."""
    return lambda image: text


def test_words_go_next_to_the_question_in_order() -> None:
    context = ExpertContext({"Caption": says(" a street\n sign "), "Text": says("STOP")})
    assert context.apply("What to do?", RED) == "Caption: a street sign\nText: STOP\nWhat to do?"
    assert context.says(RED) == {"Caption": "a street sign", "Text": "STOP"}


def test_experts_see_the_image_that_the_question_is_about() -> None:
    seen: list[Picture] = []

    def expert(image: Picture) -> str:
        seen.append(image)
        return "a"

    ExpertContext({"one": expert, "two": expert}).apply("q", RED)
    assert seen == [RED, RED]


def test_experts_can_be_switched() -> None:
    calls: list[str] = []

    def caption(image: Picture) -> str:
        calls.append("caption")
        return "a dog"

    context = ExpertContext({"caption": caption, "ocr": says("exit")}, ExpertConfig(("ocr",)))
    assert context.apply("q", RED) == "ocr: exit\nq" and not calls
    assert context.only("caption").apply("q", RED) == "caption: a dog\nq" and calls
    assert context.only().apply("q", RED) == "q", "without experts, the question as it is"


def test_an_expert_with_nothing_to_say_leaves_no_line() -> None:
    context = ExpertContext({"caption": says("a dog"), "ocr": says(" \n")})
    assert context.apply("q", RED) == "caption: a dog\nq"
    assert ExpertContext({"ocr": says("")}).apply("q", RED) == "q"


def test_templates_are_the_users() -> None:
    config = ExpertConfig(template="Q: {question} (seen: {context})", line="<{text}>")
    context = ExpertContext({"ocr": says("{exit}")}, config)
    assert context.apply("why?", RED) == "Q: why? (seen: <{exit}>)", "texts are no templates"
    with pytest.raises(ParameterError, match=r"line='\{name\}': must have the fields \{text\}"):
        ExpertConfig(line="{name}")
    with pytest.raises(ParameterError, match="must be a template"):
        ExpertConfig(line="{text:{name}}")
    short = ExpertConfig(line="{name!r:>8} {text:.3}")
    assert ExpertContext({"ocr": says("a sign")}, short).apply("q", RED) == "   'ocr' a s\nq"


@pytest.mark.parametrize(("template", "words"), [
    ("{question}", r"must have the fields \{context\} and \{question\}"),
    ("{context}{question}{other}", r"must have the fields \{context\} and \{question\}"),
    ("{context}{question", "must be a template"),
    ("{context!z} {question}", "must be a template"), ("{context:d}{question}", "must be a temp"),
    ("{context.x}{question}", "and no unknown"), ("{}{question}", "and no unknown"),
])
def test_bad_templates_are_refused(template: str, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        ExpertConfig(template=template)


def test_wrong_types_are_refused() -> None:
    wrong: Any = "a caption"
    with pytest.raises(ParameterError, match=r"experts\['caption'\]='str': must be callable: an "
                       "image to text"):
        ExpertContext({"caption": wrong})
    with pytest.raises(ParameterError, match=r"enabled='captoin': must be one of caption, ocr; "
                       "nearest legal value: caption"):
        ExpertContext({"caption": says("a"), "ocr": says("b")}, ExpertConfig(("captoin",)))
    with pytest.raises(ParameterError, match=r"experts\['ocr'\]='list': must return text, a str"):
        ExpertContext({"ocr": says(["exit"])}).apply("q", RED)
    with pytest.raises(ParameterError, match="image='Tensor': must be a Pillow image or the path"):
        ExpertContext({"ocr": says("a")}).apply("q", torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="question='NoneType': must be text"):
        ExpertContext({"ocr": says("a")}).apply(None, RED)  # type: ignore[arg-type]


def written(folder: Path, content: object, name: str = "captions.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_recorded_texts_are_found_by_file_name(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    for content in ({"red.png": "a red square", "b/blue.png": "a blue square"},
                    [{"image": "red.png", "caption": "a red square", "id": 1},
                     {"image": "b/blue.png", "caption": "a blue square"}]):
        expert = RecordedExpert(written(tmp_path, content))
        assert expert("red.png") == expert(tmp_path / "red.png") == "a red square"
        with Image.open(tmp_path / "red.png") as opened:
            assert expert(opened) == "a red square"
        assert expert("b/blue.png") == expert("elsewhere/blue.png") == "a blue square"
    ocr = RecordedExpert(written(tmp_path, [{"image": "red.png", "text": "NO"}]), field="text")
    assert ExpertContext({"Text": ocr}).apply("q", tmp_path / "red.png") == "Text: NO\nq"


def test_recorded_texts_of_equal_file_names_need_their_folders(tmp_path: Path) -> None:
    expert = RecordedExpert(written(tmp_path, {"a/1.png": "one", "b/1.png": "two"}))
    assert (expert("a/1.png"), expert("b/1.png")) == ("one", "two")
    with pytest.raises(ParameterError, match=r"image='1\.png': has no text in"):
        expert("1.png")


def test_recordings_of_many_images_are_read_at_once(tmp_path: Path) -> None:
    many = {f"{number}/{number}.png": "a" for number in range(100_000)}
    began = time.process_time()
    assert RecordedExpert(written(tmp_path, many))("99999.png") == "a"
    assert time.process_time() - began < 30  # counted anew for each, that takes minutes


@pytest.mark.parametrize(("content", "words"), [
    ('{"a": "b",\n "c" 1}', "line 2 is not JSON"),
    ("7", "line 1 must be one object, or a list of objects"),
    ([{"image": "a", "caption": "b"}, {"image": "c"}],
     "entry 2 must be an object with image and caption"),
    ([{"image": "a", "caption": 3}], "entry 1 must have texts as image and caption"),
    ({"a": None}, "entry 'a' must have texts"),
    ([{"image": "a", "caption": "b"}, {"image": "a", "caption": "c"}],
     "entry 2 says something else of a than an entry before"),
])
def test_bad_recordings_name_file_and_place(tmp_path: Path, content: object, words: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ParameterError, match=words) as caught:
        RecordedExpert(path)
    assert str(path) in str(caught.value)


def test_missing_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="must be a JSON file of texts"):
        RecordedExpert(tmp_path / "none.json")
    with pytest.raises(ParameterError, match=r"must be a JSON file of texts \(Is a directory\)"):
        RecordedExpert(tmp_path)
    expert = RecordedExpert(written(tmp_path, {"street.png": "a street"}))
    with pytest.raises(ParameterError, match=r"has no text in .*; nearest legal value: street"):
        expert("strret.png")
    with pytest.raises(ParameterError, match="must come from a file"):
        expert(RED)


WORDS = ["<pad>", "<s>", "</s>", "<unk>", "Describe", "the", "image", "red", "blue", "square"]


def captioner(visual: str) -> tuple[Any, PreTrainedTokenizerFast, VisionTower]:
    """A base of three layers that sees through a random tower, and a tokenizer of ten words."""
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    tower = VisionTower(CLIPVisionModel(CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=12, patch_size=6)), (2,))
    base = base_model(eos_token_id=2)
    insert_adapter(base, AdapterConfig.make(
        layers=2, prompt=5, visual=visual, image_width=16, image_hidden=32, unlock_norm=True,
        unlock_bias=True, unlock_scale=True))
    return base, tokenizer, tower


@pytest.mark.parametrize("visual", ["early", "late"])
def test_the_model_itself_describes_the_image_first(visual: Any) -> None:
    base, tokenizer, tower = captioner(visual)
    answers = [Instruction(instruction=DESCRIBE, output=f"{colour} square")
               for colour in ("red", "blue")]
    batch, = instruction_batches(tokenise_instructions(answers, tokenizer), 2, seed=0)
    ids, labels = (values[values[:, -3].argsort()] for values in (batch.ids, batch.labels))
    assert ids[:, -3].tolist() == [WORDS.index("red"), WORDS.index("blue")]
    features = tower.see([RED, BLUE], visual)
    net = Llama(base)
    training = JointTraining(net, lambda group: torch.optim.AdamW(group, lr=0.03),
                             JointConfig("shared"))

    def loss() -> torch.Tensor:
        logits = net(ids, features)[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    for _ in range(40):
        training.step("image_text", loss)
    expert = CaptionExpert(base, tokenizer, tower)
    assert (expert(RED), expert(BLUE)) == ("red square", "blue square")
    before = {name: values.clone() for name, values in adapter_parameters(base).items()}
    context = ExpertContext({"Caption": expert})
    assert context.apply("Which colour?", BLUE) == "Caption: blue square\nWhich colour?"
    assert all(torch.equal(values, before[name])
               for name, values in adapter_parameters(base).items())


def test_captions_end_with_the_tokenizers_end_token() -> None:
    base, tokenizer, tower = captioner("early")
    base.generation_config.eos_token_id = None  # as of bases that do not say
    with torch.no_grad():
        base.lm_head.weight.zero_()  # token 0, padding, is the likeliest
    tokenizer.eos_token = "<pad>"
    steps: list[int] = []
    base.model.register_forward_hook(lambda *_: steps.append(1))
    assert CaptionExpert(base, tokenizer, tower)(RED) == "" and len(steps) == 1


def test_captioners_without_eyes_or_words_are_refused() -> None:
    base, tokenizer, tower = captioner("early")
    with pytest.raises(ParameterError, match="max_new_tokens=0: must be 1 or more"):
        CaptionExpert(base, tokenizer, tower, max_new_tokens=0)
    with pytest.raises(ParameterError, match="instruction='': must be text"):
        CaptionExpert(base, tokenizer, tower, "")
    blind = base_model()
    insert_adapter(blind, AdapterConfig(layers=2, prompt=5))
    with pytest.raises(ParameterError, match="has an adapter that takes no images"):
        CaptionExpert(blind, tokenizer, tower)
