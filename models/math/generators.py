"""Back-ends that write text: a local model, a served one, and recorded transcripts."""

from models.math.endpoint import SPECIAL_TOKENS_KEPT, EndpointError, EndpointGenerator
from models.math.generation import Generator, PromptTooLongError
from models.math.hf_generator import HfGenerator
from models.math.recorded import RecordedGenerator

__all__ = ["SPECIAL_TOKENS_KEPT", "EndpointError", "EndpointGenerator", "Generator", "HfGenerator",
           "PromptTooLongError", "RecordedGenerator"]
