"""What part of the model may change: one file a method."""

from tunewright.methods import adalora as adalora
from tunewright.methods import any_peft as any_peft
from tunewright.methods import apollo as apollo
from tunewright.methods import bottleneck as bottleneck
from tunewright.methods import diff_pruning as diff_pruning
from tunewright.methods import galore as galore
from tunewright.methods import lisa as lisa
from tunewright.methods import llama_pro as llama_pro
from tunewright.methods import lora as lora
from tunewright.methods import mixture_of_depths as mixture_of_depths
from tunewright.methods import new_tokens as new_tokens
from tunewright.methods import peft_kinds as peft_kinds
from tunewright.methods import prompts as prompts
from tunewright.methods import selecting as selecting
